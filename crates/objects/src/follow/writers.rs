//! Who writes to the owner: counts of the last minute, from what a feed says of the request behind each change. It judges
//! nothing; what no feed tells stays unknown.

use super::feed::Change;
use crate::listing::is_reserved;
use rehome_part::Writers;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const WATCHED: Duration = Duration::from_secs(60);

/// The writers of one side, as the follower of one flow meets them.
#[derive(Debug, Default)]
pub(crate) struct WriterCounts(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    since: Option<Instant>,
    pages: VecDeque<Page>,
}

/// What one answer of the feed brought.
#[derive(Debug)]
struct Page {
    at: Instant,
    writes: u64,
    past_gateways: u64,
    untold: u64,
}

impl WriterCounts {
    pub(crate) fn note(&self, changes: &[Change], now: Instant) {
        let mut page = Page { at: now, writes: 0, past_gateways: 0, untold: 0 };
        for change in changes.iter().filter(|change| !is_reserved(&change.key)) {
            page.writes += 1;
            page.untold += u64::from(change.request.is_none());
            page.past_gateways += u64::from(change.request.as_deref() == Some(""));
        }
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.since.get_or_insert(now);
        if page.writes > 0 {
            counts.pages.push_back(page);
        }
        counts.forget(now);
    }

    /// `None` before the feed was read, and when it left out the request of any change.
    pub(crate) fn lately(&self, now: Instant) -> Option<Writers> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.forget(now);
        let watched = now.saturating_duration_since(counts.since?).min(WATCHED);
        let sum = |of: fn(&Page) -> u64| counts.pages.iter().map(of).sum::<u64>();
        (sum(|page| page.untold) == 0).then(|| Writers {
            writes: sum(|page| page.writes),
            past_gateways: sum(|page| page.past_gateways),
            watched_seconds: watched.as_secs(),
        })
    }
}

impl Counts {
    fn forget(&mut self, now: Instant) {
        let is_old = |page: &Page| now.saturating_duration_since(page.at) > WATCHED;
        while self.pages.front().is_some_and(is_old) {
            self.pages.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str, request: Option<&str>) -> Change {
        Change { position: 1, key: key.into(), deleted: false, request: request.map(String::from) }
    }

    #[test]
    fn writes_without_a_request_came_past_the_gateways() {
        let (counts, now) = (WriterCounts::default(), Instant::now());
        assert_eq!(counts.lately(now), None, "nothing was read yet");
        counts.note(&[change("a", Some("r1")), change("b", Some("")), change(".rehome/m", Some(""))], now);
        let later = now + Duration::from_secs(2);
        let seen = Writers { writes: 2, past_gateways: 1, watched_seconds: 2 };
        assert_eq!(counts.lately(later), Some(seen), "our own are not the application's");
        let much_later = now + Duration::from_secs(62);
        let quiet = Writers { watched_seconds: 60, ..Writers::default() };
        assert_eq!(counts.lately(much_later), Some(quiet), "a minute is remembered");
    }

    #[test]
    fn a_feed_that_does_not_tell_is_not_a_good_sign() {
        let (counts, now) = (WriterCounts::default(), Instant::now());
        counts.note(&[change("a", Some("r1")), change("b", None)], now);
        assert_eq!(counts.lately(now), None);
    }
}
