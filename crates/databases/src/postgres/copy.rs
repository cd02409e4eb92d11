//! The first copy by the server's own initial synchronisation, several tables at once as its settings allow. It goes on while
//! nobody watches; this only begins it, watches, and builds what is better built after the rows.

use super::connect::Session;
use super::keys::{self, Builder};
use super::part::PostgresPart;
use super::schema::{first_with_rows, major};
use super::stream::{Begin, Stream};
use super::tables;
use rehome_part::{CopySummary, Error, ErrorKind, Flow, Progress, Result, Side};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A full copy was through once.
pub(super) const COPIED: &str = "copied";
const LOOK: Duration = Duration::from_millis(100);
/// So often a table's copy may fail before a person is told; the server tries again all the while.
const FAILURES: i64 = 3;
/// A smaller table's rows are counted, a larger one's are what the server guesses.
const COUNTED_BYTES: i64 = 8 << 20;

pub(super) async fn copy(
    part: &PostgresPart,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<CopySummary> {
    let stream = part.stream(Flow::Forward);
    if part.facts.get(COPIED).is_some() {
        let rows = count(part, Side::Target).await?;
        return Ok(CopySummary { kept: rows.0, ..CopySummary::default() });
    }
    begin(part, &stream).await?;
    watch(part, progress, stop).await?;
    let schema = part.schema();
    schema.make_late().await?;
    finish(part).await?;
    keys::forget(&part.facts)?;
    part.facts.set(COPIED, "true")?;
    let (rows, bytes) = count(part, Side::Target).await?;
    progress.update(rows, bytes, Some(rows), Some(bytes));
    Ok(CopySummary { objects: rows, bytes, ..CopySummary::default() })
}

async fn begin(part: &PostgresPart, stream: &Stream<'_>) -> Result<()> {
    let to = part.sessions.on(Side::Target).await?;
    match stream.state(&to).await? {
        Some(true) => return Ok(()),
        Some(false) => {
            drop(to);
            return stream.enable().await;
        }
        None => {}
    }
    if let Some(table) = first_with_rows(&to).await? {
        let text = format!("{} holds rows on the target that the copy did not bring", table.shown());
        return Err(Error::permanent(ErrorKind::Unsupported, text)
            .on(Side::Target)
            .hint("empty the target's tables, or name an empty database"));
    }
    // A slot that a killed beginning left would be in the way; nothing was taken from it yet.
    drop(to);
    stream.drop_slot().await?;
    stream.subscribe(Begin::Copy).await
}

const HOW_FAR: &str = "
SELECT count(*) FILTER (WHERE r.srsubstate = 'r')::int8, count(*)::int8,
       coalesce(sum(c.reltuples) FILTER (WHERE r.srsubstate IN ('r', 's', 'f') AND c.reltuples > 0), 0)::float8
FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid JOIN pg_class c ON c.oid = r.srrelid
WHERE s.subname = $1";

async fn watch(part: &PostgresPart, progress: &dyn Progress, stop: &CancellationToken) -> Result<()> {
    let expected = count(part, Side::Source).await?;
    let stream = part.names.stream(Flow::Forward);
    let version = {
        let to = part.sessions.on(Side::Target).await?;
        major(&to).await?
    };
    let mut keys = Builder::new(part)?;
    let (mut failed_before, mut seen) = (None, 0);
    loop {
        if stop.is_cancelled() {
            return Err(Error::cancelled());
        }
        let to = part.sessions.on(Side::Target).await?;
        let failed = failures(&to, version, stream).await?;
        let row = to.row("look how far the copy is", HOW_FAR, &[&stream]).await?;
        let (ready, all): (i64, i64) = (row.get(0), row.get(1));
        keys.look(&to).await?;
        if ready == all && all > 0 && keys.is_done() {
            return Ok(());
        }
        // A table whose rows are there and not counted yet would fall out of the sum, for as long as its keys are built.
        seen = seen.max(row.get::<_, f64>(2) as u64 + under_way(&to, version).await?);
        progress.update(seen.min(expected.0), 0, Some(expected.0), Some(expected.1));
        drop(to);
        if keys.is_building() {
            failed_before = Some(failed);
        }
        if failed >= *failed_before.get_or_insert(failed) + FAILURES {
            let text = "the copy of a table fails again and again";
            return Err(Error::temporary(ErrorKind::Other, text)
                .on(Side::Target)
                .hint("the target's server log says why: no room, a lost connection, or rows that are there already"));
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Rows of copies that are not through; known since version 14.
async fn under_way(to: &Session, version: i32) -> Result<u64> {
    if version < 14 {
        return Ok(0);
    }
    let statement = "SELECT coalesce(sum(tuples_processed), 0)::int8 FROM pg_stat_progress_copy
                     WHERE datname = current_database() AND command = 'COPY FROM'";
    let row = to.row("look how far the copy is", statement, &[]).await?;
    Ok(row.get::<_, i64>(0).unsigned_abs())
}

/// How often a table's copy failed; known since version 15.
async fn failures(to: &Session, version: i32, stream: &str) -> Result<i64> {
    if version < 15 {
        return Ok(0);
    }
    let statement =
        "SELECT coalesce(sum(sync_error_count), 0)::int8 FROM pg_stat_subscription_stats WHERE subname = $1";
    Ok(to.row("count failed copies", statement, &[&stream]).await?.get(0))
}

/// What the new server should know before it serves: the distribution of values, and what views show.
async fn finish(part: &PostgresPart) -> Result<()> {
    let to = part.sessions.fresh(Side::Target).await?;
    let statement = "
        SELECT pg_catalog.format('REFRESH MATERIALIZED VIEW %I.%I', n.nspname, c.relname)
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'm' AND NOT c.relispopulated ORDER BY c.oid";
    for row in to.rows("read the materialized views", statement, &[]).await? {
        let refresh: String = row.get(0);
        if let Err(error) = to.run("fill a materialized view", &refresh).await {
            tracing::warn!(%error, "a materialized view stays empty; refresh it by hand");
        }
    }
    to.run("learn the distribution of values", "ANALYZE").await
}

/// Rows and bytes of all tables; rows of large ones as the server guesses.
pub(super) async fn count(part: &PostgresPart, side: Side) -> Result<(u64, u64)> {
    let session = part.sessions.on(side).await?;
    let (mut rows, mut bytes) = (0, 0);
    let sizes = "SELECT coalesce(sum(pg_relation_size(relid)), 0)::int8 FROM (
                     SELECT $1::text::regclass::oid AS relid
                     UNION SELECT inhrelid FROM pg_inherits WHERE inhparent = $1::text::regclass) parts";
    for table in tables::read(&session).await? {
        let doing = format!("measure {}", table.shown());
        let size: i64 = session.row(&doing, sizes, &[&tables::quoted(&table)]).await?.get(0);
        rows += match size < COUNTED_BYTES {
            true => {
                let statement = format!("SELECT count(*)::int8 FROM {}", tables::from(&table));
                session.row(&doing, &statement, &[]).await?.get::<_, i64>(0).unsigned_abs()
            }
            false => table.rows,
        };
        bytes += size.unsigned_abs();
    }
    Ok((rows, bytes))
}
