//! Sequences are not replicated: while nobody writes, the taking side's are set to where the giving side's are, and a little beyond.

use super::part::PostgresPart;
use rehome_part::{Flow, Result};

/// So many values are left out, and as many as a session may have taken beforehand.
const GAP: i64 = 32;

/// Sets every sequence of the taking side. One look at one side, one statement on the other, which also brings to the disk all that
/// the follower committed there without waiting for it.
pub(super) async fn set(part: &PostgresPart, flow: Flow) -> Result<()> {
    let from = part.sessions.on(flow.from()).await?;
    let statement = "
        SELECT pg_catalog.format('%I.%I', schemaname, sequencename), last_value
        FROM pg_catalog.pg_sequences WHERE last_value IS NOT NULL AND schemaname <> 'rehome'";
    let rows = from.rows("read the sequences", statement, &[]).await?;
    let (names, values): (Vec<String>, Vec<i64>) =
        rows.iter().map(|row| (row.get::<_, String>(0), row.get::<_, i64>(1))).unzip();
    let to = part.sessions.on(flow.to()).await?;
    // Towards its end, and never past it. One that has gone farther here stays.
    let statement = "
        SELECT setval(c.oid::regclass, CASE WHEN s.seqincrement > 0
                   THEN greatest(least(w.value::numeric + s.seqincrement::numeric * greatest($3, s.seqcache), s.seqmax), coalesce(q.last_value, s.seqmin))
                   ELSE least(greatest(w.value::numeric + s.seqincrement::numeric * greatest($3, s.seqcache), s.seqmin), coalesce(q.last_value, s.seqmax))
               END::int8)
        FROM unnest($1::text[], $2::int8[]) w(name, value)
        JOIN pg_catalog.pg_class c ON c.oid = to_regclass(w.name) AND c.relkind = 'S'
        JOIN pg_catalog.pg_sequence s ON s.seqrelid = c.oid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_sequences q ON q.schemaname = n.nspname AND q.sequencename = c.relname";
    to.rows("set the sequences", statement, &[&names, &values, &GAP]).await?;
    // Also without any sequence: a commit that waits for the disk.
    let step =
        "INSERT INTO rehome.done VALUES ('sealed') ON CONFLICT (step) DO UPDATE SET step = excluded.step";
    to.run("bring everything to the disk", step).await
}
