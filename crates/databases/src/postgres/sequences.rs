//! Sequences are not replicated: while nobody writes, the taking side's are set to where the giving side's are, and a little beyond.

use super::part::PostgresPart;
use super::quote;
use rehome_part::{Flow, Result};

/// So many values are left out, and as many as a session may have taken beforehand.
const GAP: i64 = 32;

/// Sets every sequence of the taking side: one look at one side, one statement on the other.
pub(super) async fn set(part: &PostgresPart, flow: Flow) -> Result<()> {
    let from = part.sessions.on(flow.from()).await?;
    let statement = "
        SELECT pg_catalog.format('%I.%I', schemaname, sequencename), last_value
        FROM pg_catalog.pg_sequences WHERE last_value IS NOT NULL AND schemaname <> 'rehome'";
    let rows = from.asked("read the sequences", statement).await?;
    let values: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let value: i64 = row.get(1)?.parse().ok()?;
            Some(format!("({}, {value})", quote::literal(row.get(0)?)))
        })
        .collect();
    if values.is_empty() {
        return Ok(());
    }
    let to = part.sessions.on(flow.to()).await?;
    // Towards its end, and never past it. One that has gone farther here stays.
    let statement = format!(
        "SELECT setval(c.oid::regclass, CASE WHEN s.seqincrement > 0
             THEN greatest(least(w.value + s.seqincrement::numeric * greatest({GAP}, s.seqcache), s.seqmax), coalesce(q.last_value, s.seqmin))
             ELSE least(greatest(w.value + s.seqincrement::numeric * greatest({GAP}, s.seqcache), s.seqmin), coalesce(q.last_value, s.seqmax))
             END::int8)
         FROM (VALUES {}) w(name, value)
         JOIN pg_catalog.pg_class c ON c.oid = to_regclass(w.name) AND c.relkind = 'S'
         JOIN pg_catalog.pg_sequence s ON s.seqrelid = c.oid
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_sequences q ON q.schemaname = n.nspname AND q.sequencename = c.relname",
        values.join(", ")
    );
    to.run("set the sequences", &statement).await
}
