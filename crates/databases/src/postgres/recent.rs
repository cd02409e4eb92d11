//! The short comparison for a switch: small tables whole, of large ones the newest rows by key, the most written ones first, within a
//! bound that fits into a pause. Believes no follower: a row that differs is looked at again when a beat from after the first look
//! has arrived; only what its side left alone meanwhile and is still not the same is a difference.

use super::connect::Session;
use super::part::{PostgresPart, settle};
use super::tables;
use super::verify::{digests, hashes, newest};
use crate::verify::{Chunk, Compared, Differences, Sides, Table, What, differences, what};
use rehome_part::{Error, Finding, Flow, Result, Severity, Side, Verification};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A table with fewer rows is compared whole.
const SMALL: u64 = 5_000;
/// Rows of a large one.
const NEWEST: u32 = 2_000;
/// Rows of all tables together.
const MOST: u64 = 40_000;
/// For a change to arrive.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOKS: u32 = 4;

/// The tables of both sides as they were read last.
#[derive(Debug, Default)]
pub(super) struct Tables(Mutex<Option<Arc<Vec<Table>>>>);

impl Tables {
    /// Reads them anew, the most written ones first.
    pub async fn read(&self, part: &PostgresPart) -> Result<Arc<Vec<Table>>> {
        let source = part.sessions.on(Side::Source).await?;
        let mut tables = tables::read(&source).await?;
        let written =
            "SELECT schemaname::text || '.' || relname::text, (n_tup_ins + n_tup_upd + n_tup_del)::int8
                       FROM pg_stat_user_tables";
        let rows = source.rows("read what is written most", written, &[]).await?;
        let heat: std::collections::HashMap<String, i64> =
            rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        tables.sort_by_key(|table| std::cmp::Reverse(heat.get(&table.shown()).copied().unwrap_or_default()));
        let tables = Arc::new(tables);
        *self.0.lock().expect("no code panics while it holds this lock") = Some(Arc::clone(&tables));
        Ok(tables)
    }

    async fn known(&self, part: &PostgresPart) -> Result<Arc<Vec<Table>>> {
        let known = self.0.lock().expect("no code panics while it holds this lock").clone();
        match known {
            Some(tables) => Ok(tables),
            None => self.read(part).await,
        }
    }
}

pub(super) async fn compare(
    part: &PostgresPart,
    flow: Flow,
    stop: &CancellationToken,
) -> Result<Verification> {
    let tables = part.tables.known(part).await?;
    let (source, target) = tokio::try_join!(part.sessions.on(Side::Source), part.sessions.on(Side::Target))?;
    let between = Between { part, flow, source: &source, target: &target };
    let mut left = MOST;
    let chosen = tables.iter().filter(|table| {
        // Without ranges a large table has no newest rows; the full comparison has seen it.
        let rows = if table.rows <= SMALL { table.rows } else { u64::from(NEWEST) };
        let is_chosen = left >= rows && (table.rows <= SMALL || table.has_ranges());
        left -= if is_chosen { rows } else { 0 };
        is_chosen
    });
    // All at once: each session takes its statements one behind the other.
    let looked = futures::future::try_join_all(chosen.map(|table| between.sums(table))).await?;
    let mut result = Verification::default();
    for (table, rows, dirty) in looked {
        if stop.is_cancelled() {
            return Err(Error::cancelled());
        }
        result.compared += rows;
        if !dirty.is_empty() {
            between.settle_rows(table, &dirty, &mut result).await?;
        }
    }
    Ok(result)
}

/// What a comparison has at hand.
struct Between<'a> {
    part: &'a PostgresPart,
    flow: Flow,
    source: &'a Session,
    target: &'a Session,
}

impl Between<'_> {
    /// How many rows were summed up, and the pieces that differ.
    async fn sums<'t>(&self, table: &'t Table) -> Result<(&'t Table, u64, Vec<Chunk>)> {
        let chunk = match table.rows <= SMALL {
            true => Chunk::all(table),
            false => newest(self.source, table, NEWEST).await?,
        };
        let (ours, theirs) =
            tokio::try_join!(digests(self.source, table, &chunk), digests(self.target, table, &chunk))?;
        Ok((table, ours.iter().map(|digest| digest.rows).sum(), chunk.differing(&ours, &theirs)))
    }

    async fn differing(&self, table: &Table, dirty: &[Chunk]) -> Result<Differences> {
        let mut found = Differences::new();
        for chunk in dirty {
            let (ours, theirs) =
                tokio::try_join!(hashes(self.source, table, chunk), hashes(self.target, table, chunk))?;
            found.extend(differences(&ours, &theirs));
        }
        Ok(found)
    }

    /// What the giving side holds of a row did not change between two looks.
    fn stays(&self, before: &Differences, key: &Vec<String>, now: &Sides) -> bool {
        before.get(key).is_some_and(|earlier| match self.flow.from() {
            Side::Source => earlier.0 == now.0,
            Side::Target => earlier.1 == now.1,
        })
    }

    async fn settle_rows(&self, table: &Table, dirty: &[Chunk], result: &mut Verification) -> Result<()> {
        let mut before = self.differing(table, dirty).await?;
        for look in 1..=LOOKS {
            if before.is_empty() {
                return Ok(());
            }
            settle(self.part, self.flow, PATIENCE).await?;
            let mut now = self.differing(table, dirty).await?;
            now.retain(|key, _| before.contains_key(key));
            if look == LOOKS || now.iter().all(|(key, sides)| self.stays(&before, key, sides)) {
                for (key, sides) in &now {
                    if !self.stays(&before, key, sides) {
                        result.in_motion += 1;
                        continue;
                    }
                    result.differences_total += 1;
                    if result.differences.len() < 100 {
                        result.differences.push(finding(&table.shown(), &names(table), key, what(sides)));
                    }
                }
                return Ok(());
            }
            before = now;
        }
        Ok(())
    }
}

fn names(table: &Table) -> Vec<String> {
    table.key.iter().map(|column| column.name.clone()).collect()
}

/// What a full comparison found, in the words of parts.
pub(super) fn summed(compared: &[Compared]) -> Verification {
    let mut sum = Verification::default();
    for one in compared {
        sum.compared += one.source_rows;
        sum.in_motion += one.unsettled;
        sum.differences_total += one.differing;
        sum.differences.extend(one.rows.iter().map(|row| finding(&one.table, &one.key, &row.key, row.what)));
        if let Some(text) = one.is_unlike() {
            sum.differences_total += 1;
            sum.differences.push(difference(text, Side::Target));
        }
    }
    sum.differences.truncate(100);
    sum
}

fn finding(table: &str, names: &[String], key: &[String], what: What) -> Finding {
    let values: Vec<String> = match names.is_empty() {
        true => key.to_vec(),
        false => names.iter().zip(key).map(|(name, value)| format!("{name} {value}")).collect(),
    };
    let (what, side) = match what {
        What::OnlyOnSource => ("is on the source only", Side::Target),
        What::OnlyOnTarget => ("is on the target only", Side::Target),
        What::Differs => ("is not the same on both sides", Side::Target),
    };
    difference(format!("{table}: the row with {} {what}", values.join(", ")), side)
}

fn difference(text: String, side: Side) -> Finding {
    Finding {
        id: "row-differs".into(),
        severity: Severity::Blocker,
        side: Some(side),
        text,
        remedy: Some("find out who wrote it; see it with `rehome db verify`".into()),
    }
}
