//! Two sorted listings walked together: every key once, with what each side has of it. It decides nothing.

use super::Sorted;
use crate::store::Entry;
use rehome_part::{Result, Side};
use std::cmp::Ordering;

/// One key and its entry on each side; at least one is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub key: String,
    pub from: Option<Entry>,
    pub to: Option<Entry>,
}

#[derive(Debug)]
pub(crate) struct Merge {
    from: Peeked,
    to: Peeked,
}

#[derive(Debug)]
struct Peeked {
    side: Side,
    entries: Sorted,
    head: Option<Entry>,
    is_read: bool,
}

impl Peeked {
    fn new(side: Side, entries: Sorted) -> Self {
        Self { side, entries, head: None, is_read: false }
    }

    /// Fills the head. Cancel-safe: nothing is lost when this is dropped while it waits.
    async fn fill(&mut self) -> Result<()> {
        if !self.is_read {
            self.head = self.entries.next().await.transpose().map_err(|e| e.on(self.side))?;
            self.is_read = true;
        }
        Ok(())
    }

    fn take(&mut self) -> Option<Entry> {
        // The end is final: `is_read` stays set when there is nothing more to read.
        self.is_read = self.head.is_none();
        self.head.take()
    }
}

impl Merge {
    /// `from` is the listing of `from_side`, `to` that of the other one.
    pub fn new(from_side: Side, from: Sorted, to: Sorted) -> Self {
        Self { from: Peeked::new(from_side, from), to: Peeked::new(from_side.other(), to) }
    }

    /// The next key in byte order. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Pair>> {
        let (from, to) = tokio::join!(self.from.fill(), self.to.fill());
        from?;
        to?;
        let order = match (&self.from.head, &self.to.head) {
            (None, None) => return Ok(None),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(from), Some(to)) => from.key.cmp(&to.key),
        };
        let from = if order.is_le() { self.from.take() } else { None };
        let to = if order.is_ge() { self.to.take() } else { None };
        let key = from.as_ref().or(to.as_ref()).map(|entry| entry.key.clone());
        Ok(key.map(|key| Pair { key, from, to }))
    }
}
