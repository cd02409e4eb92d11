//! Rates that forget: how many changes a second are applied while there is something to apply. No clock of its own.

use std::time::Duration;

/// After this much busy time an observation weighs a third of a new one.
const MEMORY: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, Default)]
pub struct Meter {
    events: f64,
    seconds: f64,
    one_seconds: Option<f64>,
}

impl Meter {
    /// `busy` time in which `events` were applied.
    pub fn add(&mut self, busy: Duration, events: u64) {
        let fade = (-busy.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.events = self.events.mul_add(fade, events as f64);
        self.seconds = self.seconds.mul_add(fade, busy.as_secs_f64());
    }

    /// How long one change took from start to end.
    pub fn one(&mut self, time: Duration) {
        let new = time.as_secs_f64();
        self.one_seconds = Some(self.one_seconds.map_or(new, |old| old.mul_add(0.8, new * 0.2)));
    }

    pub fn per_second(&self) -> Option<f64> {
        (self.events > 0.0 && self.seconds > 0.0).then(|| self.events / self.seconds)
    }

    /// Time until `backlog` and one more change are applied; `None` while nothing was measured.
    pub fn drain_seconds(&self, backlog: u64) -> Option<f64> {
        let one = self.one_seconds?;
        if backlog == 0 {
            return Some(one);
        }
        self.per_second().map(|rate| backlog as f64 / rate + one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_what_is_new() {
        let mut meter = Meter::default();
        assert_eq!((meter.per_second(), meter.drain_seconds(0)), (None, None));
        for _ in 0..100 {
            meter.add(Duration::from_millis(100), 10);
        }
        meter.one(Duration::from_millis(20));
        assert!((meter.per_second().unwrap() - 100.0).abs() < 1.0);
        assert!((meter.drain_seconds(50).unwrap() - 0.52).abs() < 0.02);
        for _ in 0..500 {
            meter.add(Duration::from_millis(100), 1);
        }
        assert!((meter.per_second().unwrap() - 10.0).abs() < 1.0);
    }
}
