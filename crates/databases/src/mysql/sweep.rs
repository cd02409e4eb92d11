//! The straggler sweep: rows that the old owner wrote by itself after its fence. A late row is copied only where the new owner has not
//! touched it since the switch; everything is reported.

use super::changes::{self, Changed, Key, Wanted, look, matching};
use super::connect::{Session, connect};
use super::quote;
use super::tables::{self, Table};
use crate::end::{End, Ends};
use mysql_async::{Params, Row};
use rehome_part::{Finding, Flow, Position, Result, Severity};
use std::collections::BTreeSet;
use std::time::Duration;

/// Findings told one by one.
const TOLD: usize = 100;
const MOST_KEYS: usize = 200_000;
const MOST_TIME: Duration = Duration::from_secs(60);

/// `sealed`: where the new owner's log was at the switch.
pub(super) async fn sweep(
    ends: &Ends,
    schema: &str,
    flow: Flow,
    since: &Position,
    sealed: Option<&Position>,
) -> Result<Vec<Finding>> {
    let (old, new) = (ends.of(flow.from()), ends.of(flow.to()));
    let mut from = connect(&old.address, old.password.as_deref(), flow.from()).await?;
    let tables = tables::read(&mut from, schema).await?;
    let wanted = |since| Wanted {
        schema,
        tables: &tables,
        since,
        own_only: true,
        most_keys: MOST_KEYS,
        most_time: MOST_TIME,
    };
    let late = changes::read(old, flow.from(), &wanted(since)).await?;
    let mut findings = Vec::new();
    if late.keys.is_empty() && late.unnamed.is_empty() {
        return Ok(findings);
    }
    // Without its place at the switch nothing there can be called untouched.
    let touched = match sealed {
        Some(sealed) => Some(changes::read(new, flow.to(), &wanted(sealed)).await?),
        None => None,
    };
    let to = connect(&new.address, new.password.as_deref(), flow.to()).await?;
    let mut sweep = Sweep { from, to, schema, flow, old };
    for (name, keys) in &late.keys {
        let Some(table) = tables.iter().find(|table| table.name == *name) else { continue };
        for key in keys {
            let is_untouched = touched.as_ref().is_some_and(|touched| is_untouched(touched, name, key));
            findings.extend(sweep.one(table, key, is_untouched).await?);
        }
    }
    for (table, count) in &late.unnamed {
        let text = format!(
            "{table}: {count} change(s) on the old owner after its fence, of rows that nothing names"
        );
        findings.push(finding("late-write-unnamed", flow, text));
    }
    if late.is_cut || touched.is_some_and(|touched| touched.is_cut) {
        let text = "more was written after the fence than this sweep reads";
        findings.push(finding("late-writes-many", flow, text.to_owned()));
    }
    let more = findings.len().saturating_sub(TOLD);
    if more > 0 {
        findings.truncate(TOLD);
        findings.push(finding("late-writes-many", flow, format!("{more} more late writes")));
    }
    Ok(findings)
}

fn is_untouched(touched: &Changed, table: &str, key: &Key) -> bool {
    !touched.is_cut
        && !touched.unnamed.contains_key(table)
        && !touched.keys.get(table).is_some_and(|keys| keys.contains(key))
}

fn finding(id: &str, flow: Flow, text: String) -> Finding {
    Finding {
        id: id.into(),
        severity: Severity::Warning,
        side: Some(flow.from()),
        text,
        remedy: Some("Compare both and keep the right one by hand.".into()),
    }
}

struct Sweep<'a> {
    from: Session,
    to: Session,
    schema: &'a str,
    flow: Flow,
    old: &'a End,
}

impl Sweep<'_> {
    async fn one(&mut self, table: &Table, key: &Key, is_untouched: bool) -> Result<Option<Finding>> {
        let one = BTreeSet::from([key.clone()]);
        let (here, there) = tokio::try_join!(
            look(&mut self.from, self.schema, table, &one),
            look(&mut self.to, self.schema, table, &one)
        )?;
        if here == there {
            return Ok(None);
        }
        let shown = here.keys().chain(there.keys()).next().map(|key| key.join(", ")).unwrap_or_default();
        if !is_untouched {
            let text = format!(
                "{} ({shown}): written on the old owner after its fence; the new owner changed it too and keeps its own",
                table.name
            );
            return Ok(Some(finding("late-write-conflict", self.flow, text)));
        }
        self.carry(table, key).await?;
        let text = format!("{} ({shown}): written on the old owner after its fence; copied", table.name);
        Ok(Some(Finding { remedy: None, ..finding("late-write-copied", self.flow, text) }))
    }

    /// The row as the old owner has it. It is written under the old owner's number: the way back brings it no row that it has.
    async fn carry(&mut self, table: &Table, key: &Key) -> Result<()> {
        let doing = format!("copy a late row of {}", table.name);
        let (condition, values) = matching(table, &[key]);
        let named = format!("{}.{}", quote::name(self.schema), quote::name(&table.name));
        let columns = quote::names(table.written().map(|column| &*column.name));
        let mut reader = connect(&self.old.address, self.old.password.as_deref(), self.flow.from()).await?;
        reader.say(&doing, "SET SESSION character_set_results = NULL").await?;
        let statement = format!("SELECT {columns} FROM {named} {condition}");
        let rows: Vec<Row> = reader.rows(&doing, &statement, Params::Positional(values.clone())).await?;
        let (number,): (u32,) = self.from.row(&doing, "SELECT @@GLOBAL.server_id", ()).await?;
        self.to.say(&doing, &format!("SET SESSION server_id = {number}")).await?;
        self.to.say(&doing, "SET SESSION foreign_key_checks = 0").await?;
        let Some(row) = rows.into_iter().next() else {
            let statement = format!("DELETE FROM {named} {condition}");
            return self.to.run(&doing, &statement, Params::Positional(values)).await.map(drop);
        };
        let values = row.unwrap();
        self.to.say(&doing, "SET NAMES binary").await?;
        let places = vec!["?"; values.len()].join(", ");
        let statement = format!("REPLACE INTO {named} ({columns}) VALUES ({places})");
        let written = self.to.run(&doing, &statement, Params::Positional(values)).await;
        self.to.say(&doing, "SET NAMES utf8mb4").await?;
        written.map(drop)
    }
}
