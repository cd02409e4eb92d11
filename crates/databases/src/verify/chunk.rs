//! What a comparison speaks of: tables and their columns, pieces, sums, and rows that differ.

use super::What;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A plain table, or the root of a partitioned one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// Empty where all are of one.
    pub schema: String,
    pub name: String,
    pub is_partitioned: bool,
    pub columns: Vec<Column>,
    /// The columns of the primary key, or of another unique index without nulls. Empty: nothing names a row.
    pub key: Vec<Column>,
    /// The server's own guess.
    pub rows: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub name: String,
    /// As SQL writes it, with its schema.
    pub kind: String,
    /// Does its order depend on a collation, which another server may have in another version?
    pub is_collated: bool,
}

impl Table {
    /// As people write it.
    pub fn shown(&self) -> String {
        if self.schema.is_empty() { self.name.clone() } else { format!("{}.{}", self.schema, self.name) }
    }

    /// Can its rows be cut into ranges that mean the same on every server?
    pub fn has_ranges(&self) -> bool {
        !self.key.is_empty() && self.key.iter().all(|column| !column.is_collated)
    }

    /// Ranges mean the same on both sides only where the key is of the same kind there.
    pub fn forget_order_unless_as(&mut self, other: &Self) {
        for column in &mut self.key {
            let there = other.columns.iter().find(|there| there.name == column.name);
            column.is_collated |= there.is_none_or(|there| there.kind != column.kind);
        }
    }
}

/// A part of a table that is compared in one go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Chunk {
    /// Rows whose key is behind `after` and not behind `until`; `None`: from the first, to the last, so that rows which only one
    /// side has are in some piece, too.
    Range { after: Option<Vec<String>>, until: Option<Vec<String>> },
    /// All rows in one pass, summed by bucket: for keys whose order is not the same everywhere, and where there is none.
    Whole,
    /// The rows of one bucket.
    Bucket(String),
}

/// The sums of some rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Digest {
    pub bucket: String,
    pub rows: u64,
    pub sums: [String; 2],
}

impl Chunk {
    /// Everything in a table, in one go.
    pub fn all(table: &Table) -> Self {
        if table.has_ranges() { Self::Range { after: None, until: None } } else { Self::Whole }
    }

    /// The parts of it that are to be looked at again.
    pub fn differing(&self, ours: &[Digest], theirs: &[Digest]) -> Vec<Self> {
        if *self != Self::Whole {
            return if ours == theirs { Vec::new() } else { vec![self.clone()] };
        }
        let by_bucket = |all: &[Digest]| -> BTreeMap<String, Digest> {
            all.iter().map(|digest| (digest.bucket.clone(), digest.clone())).collect()
        };
        let (ours, theirs) = (by_bucket(ours), by_bucket(theirs));
        let mut names: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|name| ours.get(*name) != theirs.get(*name));
        names.into_iter().map(|name| Self::Bucket(name.clone())).collect()
    }
}

/// Hash and number of each row of a piece, by its key; without a key by the hash.
pub(crate) type Hashes = BTreeMap<Vec<String>, (String, i64)>;
/// What each side has of a row, where they differ.
pub(crate) type Sides = (Option<(String, i64)>, Option<(String, i64)>);
pub(crate) type Differences = BTreeMap<Vec<String>, Sides>;

pub(crate) fn differences(ours: &Hashes, theirs: &Hashes) -> Differences {
    let mut found = Differences::new();
    for (key, here) in ours {
        let there = theirs.get(key);
        if there != Some(here) {
            found.insert(key.clone(), (Some(here.clone()), there.cloned()));
        }
    }
    for (key, there) in theirs.iter().filter(|(key, _)| !ours.contains_key(*key)) {
        found.insert(key.clone(), (None, Some(there.clone())));
    }
    found
}

pub(crate) fn what(sides: &Sides) -> What {
    match sides {
        (Some(_), None) => What::OnlyOnSource,
        (None, Some(_)) => What::OnlyOnTarget,
        _ => What::Differs,
    }
}
