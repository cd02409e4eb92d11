//! A planned hand-over: this node says good-bye (priority 0), the other takes over after its skew, and whatever was under way here is
//! still answered. Proved by the protocol itself: this node stands ready again, and the addresses do not come back to it.

use super::files;
use super::machine::has_addresses;
use super::words::Installed;
use crate::EntryError;
use std::time::{Duration, Instant};

/// How long the good-bye stands; the other node needs a few milliseconds of it.
const STANDS: Duration = Duration::from_millis(250);
/// How long Keepalived may take to see the order.
const SEEN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);

/// What became of a hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// From the order to the interface without the addresses.
    pub released_after: Duration,
    /// How long they have stayed away; longer than this node would wait for another's word.
    pub stayed_away: Duration,
}

/// Takes the order back however this ends.
struct Order<'a>(&'a Installed);

impl Order<'_> {
    fn give(&self) -> Result<(), EntryError> {
        files::write_into(&self.0.hand_over, "1\n").map_err(|error| match error {
            EntryError::File { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
                EntryError::unfit(
                    format!(
                        "{} is missing, so no Keepalived with this configuration runs here",
                        path.display()
                    ),
                    "start it, and look again: systemctl start keepalived, rehome entry keepalived status",
                )
            }
            other => other,
        })
    }

    fn take_back(self) -> Result<(), EntryError> {
        let done = files::write_into(&self.0.hand_over, "0\n");
        // Once more when it failed: a node that keeps saying good-bye stands in for nobody.
        drop(self);
        done
    }
}

impl Drop for Order<'_> {
    fn drop(&mut self) {
        // Nothing more can be done here; `status` shows an order that was left.
        let _ = files::write_into(&self.0.hand_over, "0\n");
    }
}

/// Why it did not move.
#[derive(Debug, thiserror::Error)]
pub enum Undecided {
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// Nobody else took the addresses, and this node has them again.
    #[error("the other node did not take over; this one has the addresses again after {0:?}")]
    CameBack(Duration),
    #[error("Keepalived did not let go of the addresses within {0:?}; the order was taken back")]
    NotReleased(Duration),
}

/// Lets go of the addresses, with `last` done just before.
///
/// # Errors
/// This node has none of them, its Keepalived does not follow, or the other node does not take over.
pub async fn release(installed: &Installed, last: impl Future<Output = ()>) -> Result<Moved, Undecided> {
    let here = || has_addresses(&installed.interface, &installed.addresses);
    if here().await? == Some(false) {
        let hint = "run it on the node that has them: rehome entry keepalived status";
        return Err(EntryError::unfit("this node does not have the shared addresses", hint).into());
    }
    let order = Order(installed);
    last.await;
    let ordered = Instant::now();
    order.give()?;
    while here().await? != Some(false) {
        if ordered.elapsed() > SEEN {
            return Err(Undecided::NotReleased(ordered.elapsed()));
        }
        tokio::time::sleep(LOOK).await;
    }
    let released = Instant::now();
    tokio::time::sleep(STANDS).await;
    order.take_back()?;
    // Ready again: without another's word this node would take the addresses back within this time.
    let ready = Instant::now();
    while ready.elapsed() < installed.takes_over_after() + STANDS {
        if here().await? != Some(false) {
            return Err(Undecided::CameBack(released.elapsed()));
        }
        tokio::time::sleep(LOOK * 4).await;
    }
    Ok(Moved { released_after: released - ordered, stayed_away: released.elapsed() })
}

/// An order that a killed hand-over left keeps this node from standing in. True when there was one.
///
/// # Errors
/// The file cannot be written.
pub fn put_back_if_left(installed: &Installed) -> Result<bool, EntryError> {
    let left = files::read(&installed.hand_over)?.is_some_and(|text| text.trim() != "0");
    if left {
        files::write_into(&installed.hand_over, "0\n")?;
    }
    Ok(left)
}
