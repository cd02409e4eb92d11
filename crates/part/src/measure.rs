//! Measurements that know how sure they are: durations in buckets (eight steps per doubling, at most 12 % off), and shares. Gateways
//! count, engines add up and judge. Never remembers a single value.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

const STEPS: usize = 8;
/// Up to 2^36 microseconds, 19 hours.
pub const BUCKETS: usize = 34 * STEPS;
/// Of the standard normal distribution: intervals hold the truth 19 times of 20.
const Z: f64 = 1.96;

/// Where a duration is counted, `0..BUCKETS`.
pub fn bucket(micros: u64) -> usize {
    if micros < STEPS as u64 {
        return micros as usize;
    }
    let exponent = 63 - micros.leading_zeros() as usize;
    let step = (micros >> (exponent - 3)) as usize & (STEPS - 1);
    ((exponent - 2) * STEPS + step).min(BUCKETS - 1)
}

/// The largest value that falls into a bucket, so that a quantile is never too small.
pub fn upper_micros(index: usize) -> u64 {
    if index < STEPS {
        return index as u64;
    }
    let (exponent, step) = (index / STEPS + 2, index % STEPS);
    (((STEPS + step + 1) as u64) << (exponent - 3)) - 1
}

/// How often each bucket was hit; only those that were.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u16, u64)>", into = "Vec<(u16, u64)>")]
pub struct Histogram(BTreeMap<u16, u64>);

/// On the wire it is a list: keys of JSON's objects are texts.
impl From<Vec<(u16, u64)>> for Histogram {
    fn from(counts: Vec<(u16, u64)>) -> Self {
        Self(counts.into_iter().filter(|(index, _)| usize::from(*index) < BUCKETS).collect())
    }
}

impl From<Histogram> for Vec<(u16, u64)> {
    fn from(histogram: Histogram) -> Self {
        histogram.0.into_iter().collect()
    }
}

/// A quantile with the interval that holds the true one 19 times of 20, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantile {
    pub low: f64,
    pub value: f64,
    pub high: f64,
}

impl Histogram {
    /// From counts by bucket, in order.
    pub fn of_counts(counts: impl IntoIterator<Item = u64>) -> Self {
        let counts = counts.into_iter().take(BUCKETS).enumerate().filter(|(_, count)| *count > 0);
        Self(counts.map(|(index, count)| (index as u16, count)).collect())
    }

    pub fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        *self.0.entry(bucket(micros) as u16).or_default() += 1;
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub fn add(&mut self, other: &Self) {
        for (index, count) in &other.0 {
            *self.0.entry(*index).or_default() += count;
        }
    }

    /// What came since `before`, an earlier state of the same histogram. One that began anew counts from nothing.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        if before.0.iter().any(|(index, count)| self.0.get(index).is_none_or(|now| now < count)) {
            return self.clone();
        }
        let more = self.0.iter().map(|(index, now)| (*index, now - before.0.get(index).unwrap_or(&0)));
        Self(more.filter(|(_, count)| *count > 0).collect())
    }

    /// The `share` (0..=1) quantile; `None` without values. The interval is that of order statistics: the rank of the true quantile
    /// among n values is binomial, here by its normal approximation.
    pub fn quantile(&self, share: f64) -> Option<Quantile> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        let (n, spread) = (total as f64, Z * (total as f64 * share * (1.0 - share)).sqrt());
        let at = |rank: f64| self.at_rank((rank.ceil().max(1.0) as u64).min(total));
        Some(Quantile {
            low: at(n * share - spread),
            value: at(n * share),
            high: at(n * share + spread + 1.0),
        })
    }

    /// The value of the `rank`-th smallest, counted from 1, in milliseconds.
    fn at_rank(&self, rank: u64) -> f64 {
        let mut seen = 0;
        let found = self.0.iter().find(|(_, count)| {
            seen += **count;
            seen >= rank
        });
        found.map_or(0.0, |(index, _)| upper_micros(usize::from(*index)) as f64 / 1e3)
    }
}

/// So many of so many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub hits: u64,
    pub of: u64,
}

impl Share {
    pub fn value(self) -> Option<f64> {
        (self.of > 0).then(|| self.hits as f64 / self.of as f64)
    }

    /// Where the true share is 19 times of 20 (Wilson's score interval); everything is possible without a trial.
    pub fn interval(self) -> (f64, f64) {
        let Some(p) = self.value() else { return (0.0, 1.0) };
        let n = self.of as f64;
        let (center, scale) = (p + Z * Z / (2.0 * n), 1.0 + Z * Z / n);
        let spread = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        (((center - spread) / scale).max(0.0), ((center + spread) / scale).min(1.0))
    }
}

impl std::ops::AddAssign for Share {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.of += other.of;
    }
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

        #[test]
        fn intervals_hold_what_they_are_about(hits in 0u64..2_000, more in 0u64..2_000) {
            let share = Share { hits, of: hits + more };
            let (low, high) = share.interval();
            prop_assert!((0.0..=1.0).contains(&low) && low <= high && high <= 1.0);
            if let Some(value) = share.value() {
                prop_assert!(low <= value + 1e-9 && value <= high + 1e-9);
            }
        }
    }

    fn of(millis: impl Iterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        millis.for_each(|millis| histogram.record(Duration::from_millis(millis)));
        histogram
    }

    #[test]
    fn quantiles_follow_the_values_and_grow_surer_with_them() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        let (few, many) = (of((1..=40).map(|n| n * 25)), of((1..=4_000).map(|n| n / 4)));
        let width = |histogram: &Histogram| {
            let quantile = histogram.quantile(0.5).unwrap();
            assert!(quantile.low <= quantile.value && quantile.value <= quantile.high);
            assert!((quantile.value / 500.0 - 1.0).abs() < 0.14, "{quantile:?}");
            quantile.high - quantile.low
        };
        assert!(width(&many) < width(&few));
        assert_eq!(of([7].into_iter()).quantile(0.99).unwrap().value, 7.167);
    }

    #[test]
    fn a_later_state_without_an_earlier_one_is_what_came_between() {
        let before = of(1..=10);
        let mut after = before.clone();
        let between = of(100..=120);
        after.add(&between);
        assert_eq!(after.since(&before), between);
        assert_eq!(between.since(&before), between, "it began anew");
    }

    /// Reference figures of Wilson's interval: 8 of 10 is 0.4902 to 0.9433, 0 of 300 at most 0.01264.
    #[test]
    fn wilsons_interval_is_wilsons() {
        let (low, high) = Share { hits: 8, of: 10 }.interval();
        assert!((low - 0.4902).abs() < 5e-4 && (high - 0.9433).abs() < 5e-4, "{low} {high}");
        let (low, high) = Share { hits: 0, of: 300 }.interval();
        assert!(low == 0.0 && (high - 0.01264).abs() < 5e-5, "{high}");
        assert_eq!(Share::default().interval(), (0.0, 1.0));
    }
}
