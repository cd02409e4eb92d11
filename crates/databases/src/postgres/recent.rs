//! The short comparison for a switch: small tables whole, of large ones the newest rows by key, the most written ones first, within a
//! bound that fits into a pause. Believes no follower: a row that differs is looked at again when a beat from after the first look
//! has arrived; only what its side left alone meanwhile and is still not the same is a difference.

use super::part::{PostgresPart, settle};
use super::tables::{self, Table};
use super::verify::{Chunk, Compared, Differences, What, differences, digests, hashes, newest};
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
    let mut result = Verification::default();
    for table in tables.iter() {
        if stop.is_cancelled() {
            return Err(Error::cancelled());
        }
        if result.compared >= MOST {
            break;
        }
        let chunk = match table.rows {
            rows if rows <= SMALL => Chunk::all(table),
            // Without ranges there are no newest rows; the full comparison has seen it.
            _ if !table.has_ranges() => continue,
            _ => newest(&source, table, NEWEST).await?,
        };
        let (ours, theirs) =
            tokio::try_join!(digests(&source, table, &chunk), digests(&target, table, &chunk))?;
        result.compared += ours.iter().map(|digest| digest.rows).sum::<u64>();
        let dirty = chunk.differing(&ours, &theirs);
        if dirty.is_empty() {
            continue;
        }
        let look = async || {
            let mut found = Differences::new();
            for chunk in &dirty {
                let (ours, theirs) =
                    tokio::try_join!(hashes(&source, table, chunk), hashes(&target, table, chunk))?;
                found.extend(differences(&ours, &theirs));
            }
            Ok::<_, Error>(found)
        };
        let mut before = look().await?;
        for round in 1..=LOOKS {
            if before.is_empty() {
                break;
            }
            settle(part, flow, PATIENCE).await?;
            let mut now = look().await?;
            now.retain(|key, _| before.contains_key(key));
            // What the giving side holds did not change since before the beat, and the beat has arrived.
            let stays = |key: &Vec<String>, sides: &(Option<(String, i64)>, Option<(String, i64)>)| {
                before.get(key).is_some_and(|earlier| match flow.from() {
                    Side::Source => earlier.0 == sides.0,
                    Side::Target => earlier.1 == sides.1,
                })
            };
            let is_settled = now.iter().all(|(key, sides)| stays(key, sides));
            if is_settled || round == LOOKS {
                for (key, sides) in &now {
                    if stays(key, sides) {
                        result.differences_total += 1;
                        if result.differences.len() < 100 {
                            let what = super::verify::what(sides);
                            result.differences.push(finding(&table.shown(), &names(table), key, what));
                        }
                    } else {
                        result.in_motion += 1;
                    }
                }
                break;
            }
            before = now;
        }
    }
    Ok(result)
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
