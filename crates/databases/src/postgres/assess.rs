//! What a server holds and what stands in the way of moving it by logical replication. Reads only; every finding has a remedy.

use super::VERSIONS;
use super::connect::Session;
use crate::findings::Findings;
use rehome_part::{Error, Finding};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use tokio_postgres::Row;

/// A transaction that is open for so long holds back the copy and the fence.
const LONG_TRANSACTION: f64 = 300.0;
/// So much of the write-ahead log kept for others is worth a word.
const MUCH_WAL: i64 = 1 << 30;
const LARGEST_SHOWN: usize = 5;
/// Bytes of the largest table that are read to see how fast that is.
const SAMPLE: i64 = 32 << 20;

/// What was found about one database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assessed {
    /// As the server says it.
    pub version: String,
    pub major: i32,
    pub database: String,
    pub encoding: String,
    pub collation: String,
    pub bytes: u64,
    pub tables: u64,
    /// The server's own guess.
    pub rows: u64,
    pub sequences: u64,
    pub extensions: Vec<String>,
    /// The largest tables with their indexes.
    pub largest: Vec<(String, u64)>,
    pub watched: Option<Watched>,
    /// How long one session takes to read all tables once, by a sample of the largest; building indexes on the target comes on top.
    /// `None` where nothing is to be read, or may be.
    pub read_seconds: Option<f64>,
    pub findings: Vec<Finding>,
}

/// How much changes, between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    pub seconds: f64,
    pub commits_per_second: f64,
    pub rows_per_second: f64,
    /// Of the write-ahead log: all databases of the server together.
    pub log_bytes_per_second: f64,
}

/// Looks at a database. `watch`: how long its changes are counted; zero: not at all.
///
/// # Errors
/// The catalogs cannot be read.
pub async fn assess(session: &Session, watch: Duration) -> Result<Assessed, Error> {
    let server = Server::read(session).await?;
    let mut found = Findings::of(session.side());
    server.judge(&mut found);
    let tables = tables(session, &mut found).await?;
    roles(session, &mut found).await?;
    activity(session, &mut found).await?;
    slots(session, &server, &mut found).await?;
    objects(session, &mut found).await?;
    let extensions = extensions(session, &mut found).await?;
    let read_seconds = read_seconds(session, &tables).await?;
    let watched = if watch.is_zero() { None } else { Some(watched(session, watch).await?) };
    Ok(Assessed {
        version: server.version,
        major: server.major,
        database: server.database,
        encoding: server.encoding,
        collation: server.collation,
        bytes: server.bytes,
        tables: tables.count,
        rows: tables.rows,
        sequences: tables.sequences,
        extensions,
        largest: tables.largest,
        watched,
        read_seconds,
        findings: found.all,
    })
}

/// The first few names, and how many more there are.
fn some(names: &[String]) -> String {
    let shown = names.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(4) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

struct Server {
    version: String,
    major: i32,
    database: String,
    bytes: u64,
    encoding: String,
    collation: String,
    wal_level: String,
    slots: (i32, i64),
    senders: (i32, i64),
    kept_log: Option<String>,
    is_superuser: bool,
    may_replicate: bool,
    user: String,
    is_standby: bool,
    prepared_allowed: i32,
}

impl Server {
    async fn read(session: &Session) -> Result<Self, Error> {
        let statement = "
            SELECT current_setting('server_version'), current_setting('server_version_num')::int4,
                   d.datname::text, pg_database_size(d.oid)::int8, pg_encoding_to_char(d.encoding)::text, d.datcollate::text,
                   current_setting('wal_level'),
                   current_setting('max_replication_slots')::int4, (SELECT count(*) FROM pg_replication_slots)::int8,
                   current_setting('max_wal_senders')::int4, (SELECT count(*) FROM pg_stat_replication)::int8,
                   current_setting('max_slot_wal_keep_size', true),
                   r.rolsuper, r.rolreplication, r.rolname::text, pg_is_in_recovery(),
                   current_setting('max_prepared_transactions')::int4
            FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = current_user";
        let row = session.row("read the server's settings", statement, &[]).await?;
        Ok(Self {
            version: row.get(0),
            major: row.get::<_, i32>(1) / 10_000,
            database: row.get(2),
            bytes: row.get::<_, i64>(3) as u64,
            encoding: row.get(4),
            collation: row.get(5),
            wal_level: row.get(6),
            slots: (row.get(7), row.get(8)),
            senders: (row.get(9), row.get(10)),
            kept_log: row.get(11),
            is_superuser: row.get(12),
            may_replicate: row.get(13),
            user: row.get(14),
            is_standby: row.get(15),
            prepared_allowed: row.get(16),
        })
    }

    fn judge(&self, found: &mut Findings) {
        if !VERSIONS.contains(&self.major) {
            let text =
                format!("PostgreSQL {} is none of {} to {}", self.version, VERSIONS.start(), VERSIONS.end());
            found.block(
                "version",
                text,
                "Upgrade the source first, or move it by dump in a stop of the service.",
            );
        }
        if self.is_standby {
            let remedy = "Name the primary: a standby has no publications, and before 16 no logical slots.";
            found.block("is-standby", "this server is a standby", remedy);
        }
        if self.wal_level != "logical" {
            let text = format!("wal_level is {}, logical replication needs logical", self.wal_level);
            let remedy = "ALTER SYSTEM SET wal_level = 'logical', then restart the server (managed: rds.logical_replication \
                          or the like).";
            found.block("wal-level", text, remedy);
        }
        for (what, setting, (most, used)) in
            [("slots", "max_replication_slots", self.slots), ("senders", "max_wal_senders", self.senders)]
        {
            // One for the stream, and some that the first copy of tables takes for a while.
            if i64::from(most) - used < 3 {
                let text = format!("{used} of {most} replication {what} are taken, the copy wants three");
                let remedy = format!("Raise {setting} by five and restart, or drop what nobody uses.");
                found.block(&format!("replication-{what}"), text, &remedy);
            }
        }
        if !self.may_replicate && !self.is_superuser {
            let text = format!("role {} may not replicate", self.user);
            let remedy =
                format!("ALTER ROLE {} REPLICATION (managed: GRANT rds_replication or the like).", self.user);
            found.block("may-replicate", text, &remedy);
        }
        if self.kept_log.as_deref() == Some("-1") {
            let remedy = "Set max_slot_wal_keep_size to what the disk can spare; a copy that falls farther behind begins anew.";
            let text = "a slot may keep the write-ahead log without bound, and fill the disk when the target is away";
            found.warn("slot-keeps-log", text, remedy);
        }
        if self.encoding == "SQL_ASCII" {
            let text = "the encoding is SQL_ASCII: the server does not know what its bytes mean";
            found.warn("encoding", text, "Make the target SQL_ASCII, too, or convert before the move.");
        }
        if self.prepared_allowed > 0 {
            found.note("prepared-allowed", "two-phase commit is switched on; none may be open at the switch");
        }
    }
}

struct Tables {
    count: u64,
    rows: u64,
    sequences: u64,
    largest: Vec<(String, u64)>,
    /// Without indexes: all of them, and the largest that may be read, as SQL names it.
    bytes: i64,
    sample: Option<(String, i64)>,
}

const RELATIONS: &str = "
SELECT n.nspname || '.' || c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       greatest(c.reltuples, 0)::float8, pg_total_relation_size(c.oid)::int8, c.relispartition,
       EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND i.indisvalid),
       EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate),
       c.reltablespace <> 0, CASE WHEN c.relkind = 'r' THEN pg_relation_size(c.oid) ELSE 0 END::int8,
       CASE WHEN c.relkind IN ('r', 'p', 'm') THEN has_table_privilege(c.oid, 'SELECT') ELSE true END,
       pg_catalog.format('%I.%I', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'f', 'm', 'S') AND n.nspname NOT IN ('information_schema', 'rehome') AND n.nspname !~ '^pg_'
  AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY pg_total_relation_size(c.oid) DESC, 1";

async fn tables(session: &Session, found: &mut Findings) -> Result<Tables, Error> {
    let rows = session.rows("read the tables", RELATIONS, &[]).await?;
    let kind = |row: &Row| row.get::<_, String>(1);
    let is_table = |row: &&Row| matches!(kind(row).as_str(), "r" | "p");
    let named = |wanted: &dyn Fn(&Row) -> bool| -> Vec<String> {
        rows.iter().filter(|row| wanted(row)).map(|row| row.get(0)).collect()
    };
    let unlogged = named(&|row| kind(row) == "r" && row.get::<_, String>(2) == "u");
    if !unlogged.is_empty() {
        let text = format!("not replicated, because it is unlogged: {}", some(&unlogged));
        found.block("unlogged", text, "ALTER TABLE … SET LOGGED, or drop what need not move.");
    }
    let foreign = named(&|row| kind(row) == "f");
    if !foreign.is_empty() {
        let text = format!("foreign tables move as definitions only: {}", some(&foreign));
        found.warn(
            "foreign-tables",
            text,
            "See that the target reaches their servers, and give it the user mappings.",
        );
    }
    let views = named(&|row| kind(row) == "m");
    if !views.is_empty() {
        let text = format!("materialized views are not replicated: {}", some(&views));
        found.warn(
            "materialized-views",
            text,
            "REFRESH them on the target after the switch; readers see old rows until then.",
        );
    }
    identities(&rows, found);
    let placed = named(&|row| kind(row) != "S" && row.get::<_, bool>(9));
    if !placed.is_empty() {
        let text = format!("in a tablespace of its own: {}", some(&placed));
        found.warn(
            "tablespaces",
            text,
            "Make the tablespaces on the target, or let everything go to the default one.",
        );
    }
    let unreadable = named(&|row| !row.get::<_, bool>(11));
    if !unreadable.is_empty() {
        let text = format!("this role may not read {}", some(&unreadable));
        found.block(
            "may-read",
            text,
            "GRANT SELECT on them, or pg_read_all_data (14 and newer), to the role that moves.",
        );
    }
    let is_real = |row: &&Row| is_table(row) && kind(row) == "r";
    let largest = rows.iter().filter(is_real).take(LARGEST_SHOWN);
    Ok(Tables {
        count: rows.iter().filter(is_table).filter(|row| !row.get::<_, bool>(6)).count() as u64,
        rows: rows.iter().filter(is_real).map(|row| row.get::<_, f64>(4) as u64).sum(),
        sequences: rows.iter().filter(|row| kind(row) == "S").count() as u64,
        largest: largest.map(|row| (row.get(0), row.get::<_, i64>(5) as u64)).collect(),
        bytes: rows.iter().filter(is_real).map(|row| row.get::<_, i64>(10)).sum(),
        sample: rows
            .iter()
            .filter(|row| is_real(row) && row.get(11))
            .map(|row| (row.get::<_, String>(12), row.get::<_, i64>(10)))
            .max_by_key(|(_, bytes)| *bytes),
    })
}

/// UPDATE and DELETE need something that names a row on the other side.
fn identities(rows: &[Row], found: &mut Findings) {
    let (mut none, mut deferrable) = (Vec::new(), Vec::new());
    for row in rows.iter().filter(|row| matches!(row.get::<_, String>(1).as_str(), "r" | "p")) {
        let (identity, has_key, has_deferrable): (String, bool, bool) = (row.get(3), row.get(7), row.get(8));
        match (identity.as_str(), has_key, has_deferrable) {
            ("f" | "i", _, _) | ("d", true, _) => {}
            ("d", false, true) => deferrable.push(row.get(0)),
            _ => none.push(row.get(0)),
        }
    }
    if !none.is_empty() {
        let text = format!("nothing names a row of {}", some(&none));
        let remedy = "Add a primary key; otherwise the move sets REPLICA IDENTITY FULL, and each update or delete reads the \
                      whole table on the target.";
        found.warn("no-replica-identity", text, remedy);
    }
    if !deferrable.is_empty() {
        let text = format!("the primary key is deferrable and cannot name rows: {}", some(&deferrable));
        found.warn(
            "deferrable-key",
            text,
            "Make the key NOT DEFERRABLE, or name another unique index as replica identity.",
        );
    }
}

/// The fence shuts out roles; nobody is shut out who can let himself in again.
async fn roles(session: &Session, found: &mut Findings) -> Result<(), Error> {
    let statement = "
        SELECT r.rolname::text, EXISTS (SELECT 1 FROM pg_stat_activity a WHERE a.usesysid = r.oid
               AND a.pid <> pg_backend_pid() AND a.datname = current_database()
               AND coalesce(a.backend_type, 'client backend') = 'client backend'
               AND coalesce(a.application_name, '') NOT LIKE 'rehome%')
        FROM pg_roles r WHERE r.rolsuper AND r.rolcanlogin ORDER BY 1";
    let rows = session.rows("read the roles", statement, &[]).await?;
    let busy: Vec<String> = rows.iter().filter(|row| row.get(1)).map(|row| row.get(0)).collect();
    if !busy.is_empty() {
        let text = format!("superusers are at work in this database: {}", some(&busy));
        let remedy = "Give the application a role without superuser: a superuser can undo any fence.";
        found.block("superuser-sessions", text, remedy);
    }
    let row = session
        .row("read the roles", "SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')", &[])
        .await?;
    if !row.get::<_, bool>(0) {
        let text = "passwords of roles cannot be read here";
        found.warn("role-passwords", text, "Set the passwords on the target yourself before the switch.");
    }
    Ok(())
}

async fn activity(session: &Session, found: &mut Findings) -> Result<(), Error> {
    let sees = session
        .row("read the roles", "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')", &[])
        .await?;
    if !sees.get::<_, bool>(0) {
        let text =
            "what other sessions do cannot be seen: long transactions and background workers may be missed";
        found.warn("cannot-see-sessions", text, "GRANT pg_monitor to the role that assesses.");
    }
    let statement = "
        SELECT a.pid, coalesce(a.usename, '')::text, coalesce(a.application_name, ''), extract(epoch FROM now() - a.xact_start)::float8
        FROM pg_stat_activity a WHERE a.datname = current_database() AND a.backend_type = 'client backend'
          AND a.pid <> pg_backend_pid() AND a.xact_start IS NOT NULL
          AND extract(epoch FROM now() - a.xact_start) > $1::float8 ORDER BY 4 DESC";
    let long = session.rows("read the sessions", statement, &[&LONG_TRANSACTION]).await?;
    if let Some(row) = long.first() {
        let (pid, user, application, age): (i32, String, String, f64) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let text = format!(
            "{} transaction(s) are open for more than {:.0} s; the oldest for {age:.0} s (pid {pid}, {user}, {application})",
            long.len(),
            LONG_TRANSACTION
        );
        found.warn(
            "long-transaction",
            text,
            "End it, or wait: the copy cannot begin before it, and the fence would end it.",
        );
    }
    let prepared = session
        .rows(
            "read prepared transactions",
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared",
            &[],
        )
        .await?;
    if !prepared.is_empty() {
        let gids: Vec<String> = prepared.iter().map(|row| row.get(0)).collect();
        let text = format!("prepared transactions wait for their end: {}", some(&gids));
        let remedy =
            "COMMIT PREPARED or ROLLBACK PREPARED each: one that is committed after the fence is lost.";
        found.block("prepared-transactions", text, remedy);
    }
    let workers = session
        .rows(
            "read background workers",
            "SELECT DISTINCT backend_type FROM pg_stat_activity WHERE datname = current_database()
             AND backend_type NOT IN ('client backend', 'autovacuum worker', 'parallel worker', 'walsender',
                 'logical replication worker', 'logical replication apply worker', 'logical replication tablesync worker',
                 'logical replication parallel worker') ORDER BY 1",
            &[],
        )
        .await?;
    if !workers.is_empty() {
        let names: Vec<String> = workers.iter().map(|row| row.get(0)).collect();
        let text = format!("background workers are at work in this database: {}", some(&names));
        found.block(
            "background-workers",
            text,
            "Stop them for the switch: they log in without a role that a fence could shut out.",
        );
    }
    Ok(())
}

async fn slots(session: &Session, server: &Server, found: &mut Findings) -> Result<(), Error> {
    if server.is_standby {
        return Ok(());
    }
    let statement = "
        SELECT slot_name::text, active, coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::int8
        FROM pg_replication_slots WHERE NOT active ORDER BY 3 DESC";
    let idle = session.rows("read replication slots", statement, &[]).await?;
    let kept: i64 = idle.iter().map(|row| row.get::<_, i64>(2)).max().unwrap_or_default();
    if !idle.is_empty() {
        let names: Vec<String> = idle.iter().map(|row| row.get(0)).collect();
        let text = format!("slots that nobody reads keep {} MB of log: {}", kept >> 20, some(&names));
        let remedy = "Drop what is left over (pg_drop_replication_slot), or start its reader.";
        if kept > MUCH_WAL {
            found.block("idle-slots", text, remedy);
        } else {
            found.warn("idle-slots", text, remedy);
        }
    }
    let subscriptions = session
        .row(
            "read subscriptions",
            "SELECT count(*)::int8 FROM pg_stat_subscription WHERE subid IS NOT NULL",
            &[],
        )
        .await?;
    let count: i64 = subscriptions.get(0);
    if count > 0 {
        let text = format!("{count} subscription(s) write into this server");
        found.warn(
            "subscriptions",
            text,
            "What they bring does not pass the fence: move or stop them as well.",
        );
    }
    Ok(())
}

async fn objects(session: &Session, found: &mut Findings) -> Result<(), Error> {
    let row = session
        .row(
            "read large objects and triggers",
            "SELECT (SELECT count(*) FROM pg_largeobject_metadata)::int8,
                    (SELECT count(*) FROM pg_event_trigger WHERE evtenabled <> 'D')::int8,
                    (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgenabled IN ('A', 'R'))::int8",
            &[],
        )
        .await?;
    let (large, events, always): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    if large > 0 {
        let text = format!("{large} large object(s): logical replication does not carry them");
        let remedy =
            "Move them into a bytea column or an object store first, or copy them in a stop of the service.";
        found.block("large-objects", text, remedy);
    }
    if events > 0 {
        let text = format!("{events} event trigger(s) act on DDL");
        found.warn(
            "event-triggers",
            text,
            "See that they do on the target what they should; the restore runs into them.",
        );
    }
    if always > 0 {
        let text = format!("{always} trigger(s) also fire for replicated rows");
        found.warn(
            "replica-triggers",
            text,
            "ALTER TABLE … ENABLE TRIGGER (not ALWAYS, not REPLICA), or effects happen twice.",
        );
    }
    found.note("ddl", "changes of tables are not replicated: make none between the copy and the switch");
    Ok(())
}

async fn extensions(session: &Session, found: &mut Findings) -> Result<Vec<String>, Error> {
    let statement =
        "SELECT extname::text, extversion FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1";
    let rows = session.rows("read extensions", statement, &[]).await?;
    if rows.iter().any(|row| row.get::<_, String>(0) == "pg_cron") {
        let remedy = "Unschedule its jobs for the switch and schedule them on the target after it.";
        found.block("pg-cron", "pg_cron writes by itself, past every fence of roles", remedy);
    }
    if rows.iter().any(|row| row.get::<_, String>(0) == "timescaledb") {
        let text = "timescaledb keeps rows in tables that logical replication does not follow";
        found.block("timescaledb", text, "Use its own way to move, or turn hypertables into plain ones.");
    }
    Ok(rows.iter().map(|row| format!("{} {}", row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// Reads a sample of the largest table's pages and takes the time.
async fn read_seconds(session: &Session, tables: &Tables) -> Result<Option<f64>, Error> {
    let Some((table, bytes)) = tables.sample.as_ref().filter(|(_, bytes)| *bytes > 0) else {
        return Ok(None);
    };
    let percent = (SAMPLE as f64 / *bytes as f64 * 100.0).min(100.0);
    // The size is a number and the name is quoted by the server itself.
    let statement = format!(
        "COPY (SELECT * FROM ONLY {table} TABLESAMPLE SYSTEM ({percent:.6})) TO STDOUT (FORMAT binary)"
    );
    let begun = Instant::now();
    session.copied_out("read a sample", &statement).await?;
    let sampled = *bytes as f64 * percent / 100.0;
    Ok(Some(begun.elapsed().as_secs_f64() * tables.bytes as f64 / sampled))
}

async fn watched(session: &Session, watch: Duration) -> Result<Watched, Error> {
    let first = counters(session).await?;
    tokio::time::sleep(watch).await;
    let second = counters(session).await?;
    let seconds = (second.0 - first.0).max(1e-3);
    let rate = |one: f64, other: f64| ((other - one) / seconds).max(0.0);
    Ok(Watched {
        seconds,
        commits_per_second: rate(first.1, second.1),
        rows_per_second: rate(first.2, second.2),
        log_bytes_per_second: rate(first.3, second.3),
    })
}

/// Seconds, commits, changed rows, bytes of the log.
async fn counters(session: &Session) -> Result<(f64, f64, f64, f64), Error> {
    let statement = "
        SELECT extract(epoch FROM clock_timestamp())::float8, s.xact_commit::float8,
               (s.tup_inserted + s.tup_updated + s.tup_deleted)::float8,
               CASE WHEN pg_is_in_recovery() THEN 0 ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8 END
        FROM pg_stat_database s WHERE s.datname = current_database()";
    let row = session.row("count changes", statement, &[]).await?;
    Ok((row.get(0), row.get(1), row.get(2), row.get(3)))
}

/// Does what was assessed fit on this target?
///
/// # Errors
/// The target's catalogs cannot be read.
pub async fn fits(source: &Assessed, target: &Session) -> Result<Vec<Finding>, Error> {
    let server = Server::read(target).await?;
    let mut found = Findings::of(target.side());
    if server.major < source.major {
        let text = format!("PostgreSQL {} is older than the source's {}", server.version, source.version);
        found.block("older-version", text, "Take a target of the same major version or a newer one.");
    }
    if server.is_standby {
        found.block("is-standby", "this server is a standby and takes no writes", "Name the primary.");
    }
    if server.encoding != source.encoding {
        let text = format!("the encoding is {}, the source's is {}", server.encoding, source.encoding);
        let remedy = format!("CREATE DATABASE … ENCODING '{}' TEMPLATE template0.", source.encoding);
        found.block("other-encoding", text, &remedy);
    }
    if server.collation != source.collation {
        let text = format!("text is ordered by {}, on the source by {}", server.collation, source.collation);
        let remedy =
            "Create the database with the source's LC_COLLATE, or see that nobody relies on the order.";
        found.warn("other-collation", text, remedy);
    }
    let rows = target
        .rows("read available extensions", "SELECT name::text FROM pg_available_extensions", &[])
        .await?;
    let available: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let name = |extension: &String| extension.split(' ').next().unwrap_or_default().to_owned();
    let missing: Vec<String> =
        source.extensions.iter().map(name).filter(|name| !available.contains(name)).collect();
    if !missing.is_empty() {
        let text = format!("these extensions cannot be made here: {}", some(&missing));
        found.block(
            "missing-extensions",
            text,
            "Install their packages on the target, or do without them on the source.",
        );
    }
    origins(target, &mut found).await?;
    let mut unheard = Findings::of(target.side());
    let held = tables(target, &mut unheard).await?;
    if held.count > 0 {
        let text = format!("{} table(s) are there already", held.count);
        found.warn(
            "target-not-empty",
            text,
            "Let it be an empty database, unless the copy is to go on where it was.",
        );
    } else {
        found.note("target-empty", "no table is there yet");
    }
    Ok(found.all)
}

/// Who follows remembers how far he is in an origin of his own, and so does each table while it is copied.
async fn origins(target: &Session, found: &mut Findings) -> Result<(), Error> {
    // Before version 18 they are as many as slots.
    let statement = "
        SELECT coalesce(own, current_setting('max_replication_slots'))::int4, own IS NOT NULL,
               (SELECT count(*) FROM pg_replication_origin)::int8
        FROM current_setting('max_active_replication_origins', true) own";
    let row = target.row("read the replication origins", statement, &[]).await?;
    let (most, has_own, used): (i32, bool, i64) = (row.get(0), row.get(1), row.get(2));
    if i64::from(most) - used < 3 {
        let setting = if has_own { "max_active_replication_origins" } else { "max_replication_slots" };
        let text = format!("{used} of {most} replication origins are taken, the copy wants three");
        let remedy =
            format!("Raise {setting} by five and restart, or drop the subscriptions that nobody uses.");
        found.block("replication-origins", text, &remedy);
    }
    Ok(())
}
