//! Following: the other side's lag is kept small until told to stop. State-based: for each changed key the present state is
//! carried over. It knows two ways of hearing of changes, a feed and listing again; it never decides when enough is enough.

mod audit;
mod by_feed;
mod by_listing;
mod feed;
mod window;
mod writers;

pub(crate) use by_feed::ByFeed;
pub(crate) use by_listing::follow_by_listing;
pub use feed::{Change, Feed, HookFeed, Page};
pub(crate) use writers::WriterCounts;

use crate::mover::{Carried, Deletes, Mover};
use rehome_part::{Error, ErrorKind, Flow, Position, Result, Retry};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A report at least this often.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// What a position of an objects part says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// An offset in a change feed.
    Feed(u64),
    /// The number of a listing pass: everything written before that pass began.
    Pass(u64),
}

impl Place {
    pub fn position(self) -> Position {
        match self {
            Self::Feed(number) => Position(format!("feed:{number}")),
            Self::Pass(number) => Position(format!("pass:{number}")),
        }
    }

    pub fn parse(position: &Position) -> Option<Self> {
        let (kind, number) = position.0.split_once(':')?;
        let number = number.parse().ok()?;
        match kind {
            "feed" => Some(Self::Feed(number)),
            "pass" => Some(Self::Pass(number)),
            _ => None,
        }
    }

    /// Positions of different kinds never cover each other.
    pub fn covers(applied: &Position, wanted: &Position) -> bool {
        match (Self::parse(applied), Self::parse(wanted)) {
            (Some(Self::Feed(applied)), Some(Self::Feed(wanted)))
            | (Some(Self::Pass(applied)), Some(Self::Pass(wanted))) => applied >= wanted,
            _ => false,
        }
    }
}

/// Making the call again may help, sooner or later.
fn may_pass(error: &Error) -> bool {
    error.retry != Retry::Permanent || matches!(error.kind, ErrorKind::Changed | ErrorKind::Corrupt)
}

/// Counts those who are in trouble; while there are any, the lag is unknown.
#[derive(Debug, Clone, Default)]
struct Trouble(Arc<AtomicU32>);

struct InTrouble(Trouble);

impl Trouble {
    fn enter(&self) -> InTrouble {
        self.0.fetch_add(1, Ordering::Relaxed);
        InTrouble(self.clone())
    }

    fn is_any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for InTrouble {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Carries one key, however long what is temporary lasts.
async fn carry_at_last(
    mover: &Arc<Mover>,
    flow: Flow,
    key: &str,
    trouble: &Trouble,
    stop: &CancellationToken,
) -> Result<Carried> {
    let mut failures = 0;
    let mut in_trouble = None;
    loop {
        match mover.carry(flow, key, None, Deletes::Ours, stop).await {
            Err(error) if may_pass(&error) => {
                failures += 1;
                in_trouble.get_or_insert_with(|| trouble.enter());
                tracing::warn!(key, %error, failures, "a change could not be applied yet");
                tokio::select! {
                    () = tokio::time::sleep(mover.settings.retry.wait(failures)) => {}
                    () = stop.cancelled() => return Err(Error::cancelled()),
                }
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_compare_within_their_kind_only() {
        let position = |text: &str| Position(text.into());
        assert_eq!(Place::parse(&Place::Feed(7).position()), Some(Place::Feed(7)));
        assert!(Place::covers(&position("feed:10"), &position("feed:9")));
        assert!(!Place::covers(&position("feed:9"), &position("feed:10")));
        assert!(!Place::covers(&position("pass:10"), &position("feed:9")));
        assert!(!Place::covers(&position("10"), &position("9")));
    }
}
