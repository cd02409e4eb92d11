//! What a server holds and what stands in the way of moving one of its schemas by replication. Reads only; every finding has a remedy.

use super::connect::{Flavour, Session};
use super::tables::{self, Table};
use super::{own, quote};
use rehome_part::{Assessment, Error, Finding, Result, Severity, Side};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A transaction that is open for so long holds back the copy and the fence.
const LONG_TRANSACTION: u64 = 300;
const LARGEST_SHOWN: usize = 5;
/// Tables that the server guesses to be smaller are counted.
const COUNTED: u64 = 100_000;
/// A log that is kept for less may be gone before a copy ends.
const SHORT_RETENTION: u64 = 24 * 3600;
/// What the migration's user does on a server, as the server calls it. SUPER is for the event scheduler's switch, RELOAD for removing
/// replication, BINLOG REPLAY for late rows.
const NEEDED: [&str; 13] = [
    "PROCESS",
    "RELOAD",
    "SUPER",
    "CREATE USER",
    "SET USER",
    "CONNECTION ADMIN",
    "READ_ONLY ADMIN",
    "BINLOG ADMIN",
    "BINLOG MONITOR",
    "BINLOG REPLAY",
    "REPLICATION SLAVE",
    "REPLICATION SLAVE ADMIN",
    "SLAVE MONITOR",
];

/// What was found about one schema.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assessed {
    /// As the server says it.
    pub version: String,
    pub is_mariadb: bool,
    pub database: String,
    pub collation: String,
    pub bytes: u64,
    pub tables: u64,
    /// Counted where tables are small, the server's own guess otherwise.
    pub rows: u64,
    /// The largest tables with their indexes.
    pub largest: Vec<(String, u64)>,
    pub watched: Option<Watched>,
    /// Collations of columns.
    pub collations: Vec<String>,
    pub lower_case_table_names: u64,
    pub server_id: u64,
    pub max_allowed_packet: u64,
    pub findings: Vec<Finding>,
}

/// How much changes, between two looks, on the whole server.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    pub seconds: f64,
    pub commits_per_second: f64,
    pub rows_per_second: f64,
    pub log_bytes_per_second: f64,
}

/// Looks at the schema that the session's address names. `watch`: how long its changes are counted; zero: not at all.
///
/// # Errors
/// The catalogs cannot be read.
pub async fn assess(session: &mut Session, watch: Duration) -> Result<Assessed, Error> {
    let schema = session.database().to_owned();
    let server = Server::read(session).await?;
    let mut found = Findings { side: session.side(), all: Vec::new() };
    server.judge(&mut found);
    let tables = tables::read(session, &schema).await?;
    judge_tables(&tables, &mut found);
    objects(session, &schema, &mut found).await?;
    accounts(session, &mut found).await?;
    activity(session, &mut found).await?;
    replication(session, server.flavour, &mut found).await?;
    others(session, &schema, &mut found).await?;
    let rows = rows(session, &schema, &tables).await?;
    let (collation, collations) = collations(session, &schema).await?;
    let watched = if watch.is_zero() { None } else { Some(watched(session, watch).await?) };
    let mut largest: Vec<(String, u64)> =
        tables.iter().map(|table| (table.name.clone(), table.bytes)).collect();
    largest.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    largest.truncate(LARGEST_SHOWN);
    Ok(Assessed {
        is_mariadb: server.flavour == Flavour::MariaDb,
        lower_case_table_names: server.number("lower_case_table_names"),
        server_id: server.number("server_id"),
        max_allowed_packet: server.number("max_allowed_packet"),
        version: server.version,
        database: schema,
        collation,
        bytes: tables.iter().map(|table| table.bytes).sum(),
        tables: tables.len() as u64,
        rows,
        largest,
        watched,
        collations,
        findings: found.all,
    })
}

struct Findings {
    side: Side,
    all: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, severity: Severity, id: &str, text: impl Into<String>, remedy: &str) {
        self.all.push(Finding {
            id: id.to_owned(),
            severity,
            side: Some(self.side),
            text: text.into(),
            remedy: (!remedy.is_empty()).then(|| remedy.to_owned()),
        });
    }

    fn block(&mut self, id: &str, text: impl Into<String>, remedy: &str) {
        self.add(Severity::Blocker, id, text, remedy);
    }

    fn warn(&mut self, id: &str, text: impl Into<String>, remedy: &str) {
        self.add(Severity::Warning, id, text, remedy);
    }

    fn note(&mut self, id: &str, text: impl Into<String>) {
        self.add(Severity::Info, id, text, "");
    }
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
    flavour: Flavour,
    /// Settings by name; those that the server does not have are missing.
    settings: BTreeMap<String, String>,
}

impl Server {
    async fn read(session: &mut Session) -> Result<Self> {
        let (version, flavour) = session.version().await?;
        let shown = session
            .shown(
                "read the server's settings",
                "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('log_bin', 'binlog_format', 'binlog_row_image',
                 'expire_logs_days', 'binlog_expire_logs_seconds', 'gtid_strict_mode', 'gtid_mode', 'server_id',
                 'lower_case_table_names', 'read_only', 'event_scheduler', 'max_allowed_packet', 'log_bin_compress',
                 'innodb_snapshot_isolation')",
            )
            .await?;
        let pair = |row: &mysql_async::Row| Some((row.get::<String, _>(0)?.to_lowercase(), row.get(1)?));
        Ok(Self { version, flavour, settings: shown.iter().filter_map(pair).collect() })
    }

    fn text(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).split('.').next().and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// Major and minor.
    fn release(&self) -> (u64, u64) {
        let mut numbers = self.version.split(['.', '-']).map_while(|text| text.parse().ok());
        (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
    }

    fn judge(&self, found: &mut Findings) {
        if self.flavour == Flavour::Mysql {
            let text =
                format!("this is MySQL {}, and replication is orchestrated for MariaDB only", self.version);
            found.block("flavour", text, "Move it by dump in a stop of the service.");
        } else if self.release() < (10, 5) {
            let text = format!("MariaDB {} is older than 10.5", self.version);
            found.block(
                "version",
                text,
                "Upgrade the source first, or move it by dump in a stop of the service.",
            );
        }
        if self.text("log_bin") != "ON" {
            let remedy = "Set log_bin and restart the server (managed: switch backups or binary logs on).";
            found.block("log-bin", "the binary log is off, so changes cannot be followed", remedy);
        }
        if self.text("binlog_format") != "ROW" {
            let text = format!(
                "binlog_format is {}: statements may do something else on the target",
                self.text("binlog_format")
            );
            found.block(
                "binlog-format",
                text,
                "SET GLOBAL binlog_format = ROW, and let sessions begin anew.",
            );
        }
        if !matches!(self.text("binlog_row_image"), "FULL" | "") {
            let text = format!("binlog_row_image is {}", self.text("binlog_row_image"));
            found.warn(
                "binlog-row-image",
                text,
                "Set it to FULL, so that tables without a key can be followed.",
            );
        }
        if self.text("log_bin_compress") == "ON" {
            let remedy =
                "Set log_bin_compress off: the short comparison and the sweep read the log themselves.";
            found.block("log-bin-compress", "the binary log is packed", remedy);
        }
        let kept = match self.number("binlog_expire_logs_seconds") {
            0 => (self.text("expire_logs_days").parse::<f64>().unwrap_or_default() * 86_400.0) as u64,
            seconds => seconds,
        };
        if kept > 0 && kept < SHORT_RETENTION {
            let text = format!("the binary log is kept for {kept} s only");
            found.warn(
                "binlog-retention",
                text,
                "Raise binlog_expire_logs_seconds to longer than the first copy takes.",
            );
        }
        if self.number("server_id") == 0 {
            found.block("server-id", "server_id is 0", "Give each server a number of its own.");
        }
    }
}

fn judge_tables(tables: &[Table], found: &mut Findings) {
    let named = |wanted: &dyn Fn(&Table) -> bool| -> Vec<String> {
        tables.iter().filter(|table| wanted(table)).map(|table| table.name.clone()).collect()
    };
    let others = named(&|table| !table.engine.eq_ignore_ascii_case("InnoDB"));
    if !others.is_empty() {
        let text = format!("not in InnoDB, so no consistent view holds them: {}", some(&others));
        found.block("not-innodb", text, "ALTER TABLE … ENGINE = InnoDB.");
    }
    let keyless = named(&|table| table.key.is_empty());
    if !keyless.is_empty() {
        let text = format!("nothing names a row of {}", some(&keyless));
        let remedy =
            "Add a primary key; otherwise each update or delete reads the whole table on the target.";
        found.warn("no-primary-key", text, remedy);
    }
    let versioned = named(&|table| table.is_versioned);
    if !versioned.is_empty() {
        let text = format!("old versions of rows are not carried: {}", some(&versioned));
        found.block("system-versioned", text, "ALTER TABLE … DROP SYSTEM VERSIONING, or move them by dump.");
    }
    found.note("ddl", "tables are to stay as they are between the copy and the switch");
}

async fn names(session: &mut Session, statement: &str, schema: &str) -> Result<Vec<String>> {
    session.rows("read the catalog", statement, (schema,)).await
}

async fn objects(session: &mut Session, schema: &str, found: &mut Findings) -> Result<()> {
    let sequences = names(
        session,
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? AND TABLE_TYPE = 'SEQUENCE'",
        schema,
    )
    .await?;
    if !sequences.is_empty() {
        let text = format!("sequences are not carried: {}", some(&sequences));
        found.block("sequences", text, "Use AUTO_INCREMENT instead, or move the schema by dump.");
    }
    let events = names(
        session,
        "SELECT EVENT_NAME FROM information_schema.EVENTS WHERE EVENT_SCHEMA = ? AND STATUS = 'ENABLED'",
        schema,
    )
    .await?;
    if !events.is_empty() {
        let text = format!("events act by themselves: {}", some(&events));
        found.note("events", format!("{text}; they stop with the fence and go on where the owner is"));
    }
    let triggers = names(
        session,
        "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = ?",
        schema,
    )
    .await?;
    if !triggers.is_empty() {
        let text = format!("{} trigger(s); replicated rows bring their effects with them", triggers.len());
        found.note("triggers", text);
    }
    let definers: Vec<String> = session
        .rows(
            "read definers",
            "SELECT DISTINCT DEFINER FROM (
                SELECT DEFINER FROM information_schema.VIEWS WHERE TABLE_SCHEMA = ? AND SECURITY_TYPE = 'DEFINER'
                UNION SELECT DEFINER FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = ? AND SECURITY_TYPE = 'DEFINER'
                UNION SELECT DEFINER FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = ?
                UNION SELECT DEFINER FROM information_schema.EVENTS WHERE EVENT_SCHEMA = ?) defined ORDER BY 1",
            (schema, schema, schema, schema),
        )
        .await?;
    if !definers.is_empty() {
        let text = format!("views and routines run with the rights of {}", some(&definers));
        found.warn("definers", text, "See that these accounts are on the target with the same rights.");
    }
    Ok(())
}

/// The fence refuses writes; nobody is refused who is privileged to pass it.
async fn accounts(session: &mut Session, found: &mut Findings) -> Result<()> {
    let statement = "SELECT DISTINCT GRANTEE FROM information_schema.USER_PRIVILEGES
        WHERE PRIVILEGE_TYPE IN ('SUPER', 'READ_ONLY ADMIN', 'READ ONLY ADMIN')
          AND GRANTEE <> CONCAT('''', REPLACE(CURRENT_USER(), '@', '''@'''), '''') ORDER BY 1";
    let bypassing: Vec<String> = session.rows("read privileges", statement, ()).await?;
    if !bypassing.is_empty() {
        let text = format!(
            "accounts that may pass read_only are locked by the fence, and their sessions ended: {}",
            some(&bypassing)
        );
        found.warn(
            "bypass-accounts",
            text,
            "See that the application uses none of them, and that nobody has to get in by them meanwhile.",
        );
    }
    let statement = "SELECT PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES
        WHERE GRANTEE = CONCAT('''', REPLACE(CURRENT_USER(), '@', '''@'''), '''')";
    let ours: Vec<String> = session.rows("read privileges", statement, ()).await?;
    let missing: Vec<String> = NEEDED
        .iter()
        .filter(|needed| !ours.iter().any(|one| one.replace(' ', "_") == needed.replace(' ', "_")))
        .map(|needed| (*needed).to_owned())
        .collect();
    if !missing.is_empty() {
        let text = format!("the migration's user lacks {}", missing.join(", "));
        found.block("privileges", text, "GRANT them ON *.* to it, REPLICATION SLAVE WITH GRANT OPTION.");
    }
    Ok(())
}

async fn activity(session: &mut Session, found: &mut Findings) -> Result<()> {
    let statement = "SELECT trx_mysql_thread_id, CAST(TIMESTAMPDIFF(SECOND, trx_started, NOW()) AS UNSIGNED)
        FROM information_schema.INNODB_TRX WHERE TIMESTAMPDIFF(SECOND, trx_started, NOW()) > ? ORDER BY 2 DESC";
    // The server writes these times in its own zone.
    session.say("read open transactions", "SET SESSION time_zone = 'SYSTEM'").await?;
    let long: Vec<(u64, u64)> =
        session.rows("read open transactions", statement, (LONG_TRANSACTION,)).await?;
    session.say("read open transactions", "SET SESSION time_zone = '+00:00'").await?;
    if let Some((id, age)) = long.first() {
        let text = format!(
            "{} transaction(s) are open for more than {LONG_TRANSACTION} s; the oldest for {age} s (session {id})",
            long.len()
        );
        found.warn("long-transaction", text, "End it, or wait: the fence would end it.");
    }
    let prepared = session.shown("read prepared transactions", "XA RECOVER").await?;
    if !prepared.is_empty() {
        let text = format!("{} prepared XA transaction(s) wait for their end", prepared.len());
        let remedy = "XA COMMIT or XA ROLLBACK each: one that is committed after the fence is lost.";
        found.block("xa-prepared", text, remedy);
    }
    Ok(())
}

async fn replication(session: &mut Session, flavour: Flavour, found: &mut Findings) -> Result<()> {
    let statement =
        if flavour == Flavour::MariaDb { "SHOW ALL SLAVES STATUS" } else { "SHOW REPLICA STATUS" };
    let rows = session.shown("read the state of replication", statement).await?;
    let is_ours = |row: &mysql_async::Row| {
        row.get::<Option<String>, _>("Connection_name").flatten().is_some_and(|name| name == own::SCHEMA)
    };
    let others = rows.iter().filter(|row| !is_ours(row)).count();
    if others > 0 {
        let text = format!("this server receives from {others} other(s)");
        let remedy = "Stop that replication first: what it brings does not pass the fence, and it would share our position.";
        found.block("other-replication", text, remedy);
    }
    Ok(())
}

/// `read_only` closes the whole server.
async fn others(session: &mut Session, schema: &str, found: &mut Findings) -> Result<()> {
    let statement = "SELECT DISTINCT TABLE_SCHEMA FROM information_schema.TABLES
        WHERE TABLE_TYPE = 'BASE TABLE' AND TABLE_SCHEMA NOT IN
            ('mysql', 'information_schema', 'performance_schema', 'sys', 'rehome', ?) ORDER BY 1";
    let others: Vec<String> = session.rows("read the schemas", statement, (schema,)).await?;
    if !others.is_empty() {
        let text = format!("the fence closes the whole server, and with it {}", some(&others));
        found.warn(
            "other-schemas",
            text,
            "Move them together, or see that they can do without writes during the switch and after it.",
        );
    }
    Ok(())
}

async fn rows(session: &mut Session, schema: &str, tables: &[Table]) -> Result<u64> {
    let mut sum = 0;
    for table in tables {
        sum += if table.rows < COUNTED {
            let named = format!("{}.{}", quote::name(schema), quote::name(&table.name));
            let counted: (u64,) =
                session.row("count rows", &format!("SELECT COUNT(*) FROM {named}"), ()).await?;
            counted.0
        } else {
            table.rows
        };
    }
    Ok(sum)
}

/// The schema's own, and those of its columns.
async fn collations(session: &mut Session, schema: &str) -> Result<(String, Vec<String>)> {
    let statement = "SELECT DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = ?";
    let own: Vec<String> = session.rows("read collations", statement, (schema,)).await?;
    let statement = "SELECT DISTINCT COLLATION_NAME FROM information_schema.COLUMNS
        WHERE TABLE_SCHEMA = ? AND COLLATION_NAME IS NOT NULL ORDER BY 1";
    let all: Vec<String> = session.rows("read collations", statement, (schema,)).await?;
    Ok((own.into_iter().next().unwrap_or_default(), all))
}

async fn watched(session: &mut Session, watch: Duration) -> Result<Watched> {
    let (begun, first) = (Instant::now(), counters(session).await?);
    tokio::time::sleep(watch).await;
    let second = counters(session).await?;
    let seconds = begun.elapsed().as_secs_f64().max(1e-3);
    let rate = |names: &[&str]| {
        let sum = |counters: &BTreeMap<String, f64>| {
            names.iter().filter_map(|name| counters.get(*name)).sum::<f64>()
        };
        ((sum(&second) - sum(&first)) / seconds).max(0.0)
    };
    Ok(Watched {
        seconds,
        commits_per_second: rate(&["binlog_commits"]).max(rate(&["com_commit"])),
        rows_per_second: rate(&["handler_write", "handler_update", "handler_delete"]),
        log_bytes_per_second: rate(&["binlog_bytes_written"]),
    })
}

async fn counters(session: &mut Session) -> Result<BTreeMap<String, f64>> {
    let statement =
        "SHOW GLOBAL STATUS WHERE Variable_name IN ('Binlog_commits', 'Com_commit', 'Handler_write',
        'Handler_update', 'Handler_delete', 'Binlog_bytes_written')";
    let rows = session.shown("count changes", statement).await?;
    let pair = |row: &mysql_async::Row| {
        let value: String = row.get(1)?;
        Some((row.get::<String, _>(0)?.to_lowercase(), value.parse().ok()?))
    };
    Ok(rows.iter().filter_map(pair).collect())
}

/// Does what was assessed fit on this target?
///
/// # Errors
/// The target's catalogs cannot be read.
pub async fn fits(source: &Assessed, target: &mut Session) -> Result<Vec<Finding>, Error> {
    let server = Server::read(target).await?;
    let mut found = Findings { side: target.side(), all: Vec::new() };
    server.judge(&mut found);
    if (server.flavour == Flavour::MariaDb) != source.is_mariadb {
        let text = format!("the target runs {}, the source {}", server.version, source.version);
        found.block("other-flavour", text, "Take a target of the same family.");
    }
    let release = |version: &str| -> Vec<u64> {
        version.split(['.', '-']).map_while(|text| text.parse().ok()).take(2).collect()
    };
    if release(&server.version) < release(&source.version) {
        let text = format!("{} is older than the source's {}", server.version, source.version);
        found.block("older-version", text, "Take a target of the same version or a newer one.");
    }
    if server.number("server_id") == source.server_id {
        let text = format!("both servers have the number {}", source.server_id);
        found.block("same-server-id", text, "Give the target another server_id.");
    }
    if server.number("lower_case_table_names") != source.lower_case_table_names {
        let text = "lower_case_table_names differs, so names of tables mean something else there";
        found.block("lower-case-table-names", text, "Make the target anew with the source's setting.");
    }
    if server.text("read_only") == "ON" {
        found.block(
            "is-read-only",
            "the server is read-only",
            "SET GLOBAL read_only = OFF, or name the primary.",
        );
    }
    if server.text("gtid_strict_mode") == "ON" {
        let remedy = "SET GLOBAL gtid_strict_mode = OFF on it until the migration is complete.";
        found.block(
            "gtid-strict-mode",
            "the server takes no transactions out of order, not even beside its own",
            remedy,
        );
    }
    if server.number("max_allowed_packet") < source.max_allowed_packet {
        let text = format!(
            "max_allowed_packet is {}, on the source {}",
            server.number("max_allowed_packet"),
            source.max_allowed_packet
        );
        found.warn("max-allowed-packet", text, "Raise it to the source's.");
    }
    accounts(target, &mut found).await?;
    replication(target, server.flavour, &mut found).await?;
    let known: Vec<String> = target
        .rows("read collations", "SELECT DISTINCT COALESCE(FULL_COLLATION_NAME, COLLATION_NAME) FROM information_schema.COLLATION_CHARACTER_SET_APPLICABILITY", ())
        .await?;
    let missing: Vec<String> =
        source.collations.iter().filter(|name| !known.contains(name)).cloned().collect();
    if !missing.is_empty() {
        let text = format!("this server does not know {}", some(&missing));
        found.block("missing-collations", text, "Take a newer target, or convert the columns.");
    }
    let (collation, _) = collations(target, &source.database).await?;
    if !collation.is_empty() && collation != source.collation {
        let text = format!("new tables are ordered by {collation}, on the source by {}", source.collation);
        found.warn("other-collation", text, "ALTER DATABASE … COLLATE the source's.");
    }
    let held = tables::read(target, &source.database).await?;
    if held.is_empty() {
        found.note("target-empty", "no table is there yet");
    } else {
        let text = format!("{} table(s) are there already", held.len());
        found.warn(
            "target-not-empty",
            text,
            "Let it be an empty schema, unless the copy is to go on where it was.",
        );
    }
    Ok(found.all)
}

/// Both sides, for a part.
pub(super) async fn part(source: &mut Session, target: &mut Session) -> Result<Assessment> {
    let assessed = assess(source, Duration::from_secs(1)).await?;
    let mut findings = assessed.findings.clone();
    findings.extend(fits(&assessed, target).await?);
    let shapes = tables::read(source, &assessed.database).await?;
    let mut shape = format!("{} {} {}", assessed.version, assessed.server_id, assessed.database);
    for table in &shapes {
        let columns = table.columns.iter().map(|column| format!("{} {}", column.name, column.kind));
        shape.push_str(&format!(
            "\n{} {}: {}",
            table.name,
            table.engine,
            columns.collect::<Vec<_>>().join(", ")
        ));
    }
    Ok(Assessment {
        objects: assessed.rows,
        bytes: assessed.bytes,
        changes_per_second: assessed.watched.map(|watched| watched.rows_per_second),
        compressed_ratio: None,
        copy_seconds: None,
        findings,
        fingerprint: blake3::hash(shape.as_bytes()).to_hex().to_string(),
    })
}
