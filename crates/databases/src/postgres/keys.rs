//! Keys that are built when the rows of their table are there: filled row by row, the key of a large table costs more than its rows.
//! What changed while a table was copied wants its key, so the key's lock is asked for while the copy still holds the table:
//! whoever brings the changes comes behind it. Came it too late, the server tries again by itself a few seconds later. Knows which
//! keys are missing, and never makes one before the copy has begun.

use super::connect::Session;
use super::dump::{self, Tools};
use super::part::PostgresPart;
use super::schema::major;
use crate::facts::Facts;
use rehome_part::{Error, ErrorKind, Flow, Result, Side};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tokio::task::JoinSet;

const MISSING: &str = "late-keys";
/// A smaller table's key is there before its rows.
const LARGE: i64 = 32 << 20;
/// The first version that makes a table's rows visible before it brings what changed meanwhile.
const TWO_STEPS: i32 = 14;

/// A table whose keys come after its rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Missing {
    /// Quoted.
    table: String,
    /// As the source guesses; zero where it does not know.
    rows: f64,
    statements: String,
}

/// Chooses the keys that come later out of `entries`, remembers how they are made, and gives the other entries back.
///
/// # Errors
/// The source cannot be read, or `pg_restore` fails.
pub(super) async fn put_off(
    (source, target): (&Session, &Session),
    facts: &Facts,
    (tools, file): (&Tools, &Path),
    mut entries: Vec<String>,
) -> Result<Vec<String>> {
    if major(target).await? < TWO_STEPS {
        return Ok(entries);
    }
    // Without a primary key it is another index, or none, that names rows; that has to be there, and be chosen, before they come.
    let statement = "
        SELECT n.nspname::text, c.relname::text, pg_catalog.format('%I.%I', n.nspname, c.relname), greatest(c.reltuples, 0)::float8
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND c.relreplident = 'd' AND pg_relation_size(c.oid) >= $1
          AND EXISTS (SELECT 1 FROM pg_catalog.pg_index i
                      WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND i.indisvalid)";
    let mut missing = Vec::new();
    for row in source.rows("read which tables are large", statement, &[&LARGE]).await? {
        let (schema, name): (String, String) = (row.get(0), row.get(1));
        let (keys, rest): (Vec<String>, Vec<String>) =
            entries.into_iter().partition(|entry| dump::is_key_of(entry, &schema, &name));
        entries = rest;
        if !keys.is_empty() {
            let statements = tools.statements(file, &keys).await?;
            missing.push(Missing { table: row.get(2), rows: row.get(3), statements });
        }
    }
    if !missing.is_empty() {
        let text = serde_json::to_string(&missing).map_err(|error| {
            Error::permanent(ErrorKind::Other, format!("remember which keys come later: {error}"))
        })?;
        facts.set(MISSING, &text)?;
    }
    Ok(entries)
}

fn missing(facts: &Facts) -> Result<Vec<Missing>> {
    let Some(text) = facts.get(MISSING) else { return Ok(Vec::new()) };
    serde_json::from_str(&text)
        .map_err(|error| Error::permanent(ErrorKind::Corrupt, format!("which keys come later: {error}")))
}

/// The tables, quoted, that will have something that names their rows and have nothing yet.
pub(super) fn awaited(facts: &Facts) -> Result<Vec<String>> {
    Ok(missing(facts)?.into_iter().map(|missing| missing.table).collect())
}

pub(super) fn forget(facts: &Facts) -> Result<()> {
    facts.forget(MISSING)
}

/// Builds what is missing while a copy runs.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    part: &'a PostgresPart,
    missing: Vec<Missing>,
    building: JoinSet<Result<()>>,
}

impl<'a> Builder<'a> {
    pub fn new(part: &'a PostgresPart) -> Result<Self> {
        Ok(Self { part, missing: missing(&part.facts)?, building: JoinSet::new() })
    }

    pub fn is_done(&self) -> bool {
        self.missing.is_empty() && self.building.is_empty()
    }

    /// Then a table's changes may fail for want of its key, and come the next time.
    pub fn is_building(&self) -> bool {
        !self.building.is_empty()
    }

    /// Begins what is due, and sees what ended.
    ///
    /// # Errors
    /// A key cannot be built.
    pub async fn look(&mut self, to: &Session) -> Result<()> {
        while let Some(built) = self.building.try_join_next() {
            built.map_err(|error| Error::temporary(ErrorKind::Other, format!("build a key: {error}")))??;
        }
        if self.missing.is_empty() {
            return Ok(());
        }
        let statement = "
            SELECT r.srsubstate::text, coalesce(p.tuples_processed, 0)::float8,
                   EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = r.srrelid AND i.indisprimary)
            FROM unnest($1::text[]) WITH ORDINALITY t(name, place)
            LEFT JOIN pg_subscription s ON s.subname = $2
            LEFT JOIN pg_subscription_rel r ON r.srrelid = to_regclass(t.name) AND r.srsubid = s.oid
            LEFT JOIN pg_stat_progress_copy p ON p.relid = r.srrelid AND p.datname = current_database() AND p.command = 'COPY FROM'
            ORDER BY t.place";
        let names: Vec<&str> = self.missing.iter().map(|missing| missing.table.as_str()).collect();
        let stream = self.part.names.stream(Flow::Forward);
        let rows = to.rows("look which keys are due", statement, &[&names, &stream]).await?;
        let mut later = Vec::new();
        for (missing, row) in std::mem::take(&mut self.missing).into_iter().zip(rows) {
            let (state, copied, is_there): (Option<String>, f64, bool) = (row.get(0), row.get(1), row.get(2));
            match state {
                // Built before a kill, or of a table that is gone meanwhile.
                _ if is_there => {}
                None => {}
                Some(state) if is_due(&state, copied, missing.rows) => self.build(missing).await?,
                Some(_) => later.push(missing),
            }
        }
        self.missing = later;
        Ok(())
    }

    async fn build(&mut self, missing: Missing) -> Result<()> {
        // What `pg_restore` writes lets it wait for the table's lock as long as it takes.
        let session = self.part.sessions.fresh(Side::Target).await?;
        self.building.spawn(async move {
            session.run(&format!("build the keys of {}", missing.table), &missing.statements).await
        });
        Ok(())
    }
}

/// Are the rows there, or so nearly that the last come while the lock is asked for? Not much sooner: behind whoever waits for the table, its
/// changes wait, and with them those of all others.
fn is_due(state: &str, copied: f64, rows: f64) -> bool {
    match state {
        "i" => false,
        "d" => rows > 0.0 && copied > 0.0 && copied >= rows * 0.97 - 200_000.0,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_due_when_its_rows_are_nearly_there() {
        assert!(!is_due("i", 0.0, 1e6));
        assert!(!is_due("d", 0.0, 1e5), "nothing holds the table yet");
        assert!(!is_due("d", 7e5, 1e6));
        assert!(is_due("d", 8e5, 1e6));
        assert!(!is_due("d", 8e5, 0.0), "nobody knows how many there are");
        for state in ["f", "s", "r"] {
            assert!(is_due(state, 0.0, 1e6), "{state}");
        }
    }
}
