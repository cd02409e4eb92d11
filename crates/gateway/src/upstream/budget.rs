//! How many reads may be sent a second time. Repeating is paid for by reads that went well, so that a side in trouble never
//! gets much more than it was sent anyway. Writes are never repeated and never ask here.

use std::sync::atomic::{AtomicU32, Ordering};

/// Thousandths of a repetition, so that a fifth can be saved.
const WHOLE: u32 = 1_000;
/// What each read brings: one repetition for five of them.
const SHARE: u32 = WHOLE / 5;
/// What every second brings, for services with few reads.
const FLOOR_PER_SECOND: u32 = 10 * WHOLE;
/// Saved at most: all kept connections of an upstream that starts anew may turn out to be dead at once.
const MOST: u32 = 200 * WHOLE;

#[derive(Debug)]
pub(crate) struct Budget(AtomicU32);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicU32::new(MOST))
    }
}

impl Budget {
    /// A read came.
    pub fn earn(&self) {
        if self.0.load(Ordering::Relaxed) < MOST {
            self.add(SHARE);
        }
    }

    /// Called every second.
    pub fn second(&self) {
        self.add(FLOOR_PER_SECOND);
    }

    fn add(&self, more: u32) {
        let saved = |now: u32| Some(now.saturating_add(more).min(MOST));
        let _always = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, saved);
    }

    /// May one more read be repeated?
    pub fn spend(&self) -> bool {
        let left = |now: u32| now.checked_sub(WHOLE);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_reads_may_be_repeated() {
        let budget = Budget::default();
        assert_eq!((0..1_000).filter(|_| budget.spend()).count(), 200, "what is saved");
        (0..50).for_each(|_| budget.earn());
        assert_eq!((0..1_000).filter(|_| budget.spend()).count(), 10);
        budget.second();
        assert_eq!((0..1_000).filter(|_| budget.spend()).count(), 10);
        (0..100_000).for_each(|_| budget.earn());
        assert_eq!((0..1_000).filter(|_| budget.spend()).count(), 200);
    }
}
