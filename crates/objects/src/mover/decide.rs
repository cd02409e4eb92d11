//! What a pair of listing entries calls for. Pure but for a look into the state; it never acts.

use super::Mover;
use super::digest::is_md5;
use super::state::{Mark, Seen};
use crate::listing::{Pair, is_reserved};
use crate::store::Entry;
use rehome_part::{Flow, Result};

/// What may be deleted on the side written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deletes {
    Never,
    /// Only keys that we wrote, or that were on both sides.
    Ours,
    /// Everything that is not on the other side: a mirror.
    All,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Carry it over; listed with this size.
    Copy(u64),
    Keep,
    /// Equal, and not remembered as such yet.
    Adopt(Mark),
    /// It is gone on the side we copy from, and ours to delete.
    Delete,
    /// On the side written to only, and not ours.
    Extra,
    /// Not the application's data.
    Skip,
}

/// The keys of markers; they are carried like data while following, and never counted.
pub(crate) fn is_marker(key: &str) -> bool {
    key.starts_with(".rehome/marker-")
}

pub(crate) fn decide(mover: &Mover, flow: Flow, deletes: Deletes, pair: &Pair) -> Result<Action> {
    if is_reserved(&pair.key) {
        return Ok(match (&pair.from, &pair.to) {
            (Some(from), None) if is_marker(&pair.key) => Action::Copy(from.size),
            _ => Action::Skip,
        });
    }
    match (&pair.from, &pair.to) {
        (Some(from), None) => Ok(Action::Copy(from.size)),
        (Some(from), Some(to)) if from.size != to.size => Ok(Action::Copy(from.size)),
        (Some(from), Some(to)) => compare(mover, flow, from, to),
        (None, Some(_)) => match deletes {
            Deletes::All => Ok(Action::Delete),
            Deletes::Ours if mover.state.mark_of(&pair.key)?.is_some() => Ok(Action::Delete),
            _ => Ok(Action::Extra),
        },
        (None, None) => Ok(Action::Skip),
    }
}

/// Same size on both sides: the same content?
fn compare(mover: &Mover, flow: Flow, from: &Entry, to: &Entry) -> Result<Action> {
    let mark = mover.state.mark_of(&from.key)?.filter(|mark| mark.done);
    if let Some(mark) = mark {
        match (mark.of(flow.from()).is(from), mark.of(flow.to()).is(to)) {
            (Some(true), Some(true)) => return Ok(Action::Keep),
            // The answer to our write had no tag: take the listed one, so that later changes are seen.
            (Some(true), None) => return Ok(Action::Adopt(adopted(flow, from, to))),
            // A new version on the side we copy from: even with the same bytes its headers may differ.
            (Some(false), _) => return Ok(Action::Copy(from.size)),
            _ => {}
        }
    }
    if both_md5(mover, flow, from, to) == Some(true) {
        return Ok(Action::Adopt(adopted(flow, from, to)));
    }
    Ok(Action::Copy(from.size))
}

fn adopted(flow: Flow, from: &Entry, to: &Entry) -> Mark {
    let seen =
        |entry: &Entry| Seen { etag: entry.etag.clone(), size: Some(entry.size), modified: entry.modified };
    Mark::new(flow, seen(from), seen(to))
}

/// Do the listed tags prove content equal or different? `None` when they are not both MD5.
pub(crate) fn both_md5(mover: &Mover, flow: Flow, from: &Entry, to: &Entry) -> Option<bool> {
    let md5_of = |side, entry: &Entry| {
        let plain = mover.store(side).capabilities().etag_is_md5;
        entry.etag.as_ref().filter(|etag| plain && is_md5(etag)).map(|etag| etag.to_ascii_lowercase())
    };
    md5_of(flow.from(), from).zip(md5_of(flow.to(), to)).map(|(a, b)| a == b)
}
