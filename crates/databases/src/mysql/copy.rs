//! The first full copy: one consistent view of the source, whose place in the binary log is known, read table by table and piece by
//! piece. A second attempt takes a new view; a piece whose sums are equal on both sides is not carried again.

use super::connect::Session;
use super::tables::{Table, word};
use super::verify::{condition, digests, key_texts};
use super::{own, quote, tables};
use crate::verify::{self, Chunk};
use mysql_async::prelude::Queryable;
use mysql_async::{Params, Row, Value};
use rehome_part::{Error, ErrorKind, Position, Progress};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Rows of a piece, and of what is written at once; fewer where they are wide.
const PIECE_ROWS: u64 = 10_000;
const PIECE_BYTES: u64 = 16 << 20;
const BATCH_ROWS: usize = 500;
const BATCH_BYTES: u64 = 2 << 20;
/// A statement takes 65535 values.
const BATCH_VALUES: usize = 60_000;

/// The sessions of one copy; they are used for nothing else.
pub(super) struct Copier {
    /// Holds the view.
    pub from: Session,
    /// Compares and removes.
    pub to: Session,
    /// Writes values as the bytes they are.
    pub writer: Session,
    pub schema: String,
    pub progress: Arc<dyn Progress>,
    pub stop: CancellationToken,
    pub done: Done,
}

#[derive(Debug, Default, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub(super) struct Done {
    pub rows: u64,
    pub bytes: u64,
    pub kept: u64,
}

/// One table on its way.
struct OnItsWay<'a> {
    schema: &'a str,
    table: &'a Table,
    compared: verify::Table,
    /// Has it been empty there when we began?
    is_fresh: bool,
    piece_rows: u32,
}

impl Copier {
    /// Copies everything, and says from where in the binary log to follow.
    pub async fn run(&mut self) -> Result<Position, Error> {
        let schema = self.schema.clone();
        let tables = tables::read(&mut self.from, &schema).await?;
        let own = tables::read(&mut self.from, own::SCHEMA).await?;
        let start = self.begin().await?;
        let totals =
            (tables.iter().map(|table| table.rows).sum(), tables.iter().map(|table| table.bytes).sum());
        for table in &tables {
            self.table(&schema, table, totals).await?;
        }
        let counted = self.done;
        for table in own.iter().filter(|table| own::TABLES.contains(&&*table.name)) {
            self.table(own::SCHEMA, table, totals).await?;
        }
        self.done = counted;
        Ok(start)
    }

    async fn begin(&mut self) -> Result<Position, Error> {
        let doing = "take a consistent view";
        self.from.say(doing, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
        // Values come as the bytes they are; what is asked for is still text.
        self.from.say(doing, "SET SESSION character_set_results = NULL").await?;
        self.to.say(doing, "SET SESSION foreign_key_checks = 0").await?;
        let settings = "SET NAMES binary, SESSION foreign_key_checks = 0, SESSION unique_checks = 0";
        self.writer.say(doing, settings).await?;
        self.from.say(doing, "START TRANSACTION WITH CONSISTENT SNAPSHOT").await?;
        let shown = self.from.shown(doing, "SHOW STATUS LIKE 'binlog_snapshot_%'").await?;
        let of = |name: &str| {
            let row = shown
                .iter()
                .find(|row| row.get::<String, _>(0).is_some_and(|one| one.eq_ignore_ascii_case(name)));
            row.and_then(|row| row.get::<String, _>(1)).unwrap_or_default()
        };
        let (file, place) = (of("binlog_snapshot_file"), of("binlog_snapshot_position"));
        let place: u64 = place.parse().unwrap_or_default();
        if file.is_empty() || place == 0 {
            let error = Error::permanent(
                ErrorKind::Unsupported,
                "the server does not say where its view is in the binary log",
            );
            return Err(error.on(self.from.side()).hint("switch the binary log on (log_bin) and restart"));
        }
        let statement = "SELECT CONVERT(BINLOG_GTID_POS(?, ?) USING utf8mb4)";
        let (start,): (Option<String>,) = self.from.row(doing, statement, (file, place)).await?;
        let unknown =
            || Error::permanent(ErrorKind::Other, "the view's place in the binary log is not known");
        start.map(Position).ok_or_else(|| unknown().on(self.from.side()))
    }

    fn check_stop(&self) -> Result<(), Error> {
        if self.stop.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    }

    async fn table(&mut self, schema: &str, table: &Table, totals: (u64, u64)) -> Result<(), Error> {
        let named = format!("{}.{}", quote::name(schema), quote::name(&table.name));
        let doing = format!("copy {}", table.name);
        let rows: Vec<u64> = self.to.rows(&doing, &format!("SELECT 1 FROM {named} LIMIT 1"), ()).await?;
        let width = table.bytes / table.rows.max(1);
        let way = OnItsWay {
            schema,
            table,
            compared: table.compared(),
            is_fresh: rows.is_empty(),
            piece_rows: (PIECE_BYTES / width.max(1)).clamp(1, PIECE_ROWS) as u32,
        };
        if !way.compared.has_ranges() {
            return self.piece(&way, &Chunk::Whole, totals).await;
        }
        let mut after = None;
        loop {
            self.check_stop()?;
            let until = self.boundary(&way, &Chunk::Range { after: after.clone(), until: None }).await?;
            let is_last = until.is_none();
            self.piece(&way, &Chunk::Range { after, until: until.clone() }, totals).await?;
            if is_last {
                return Ok(());
            }
            after = until;
        }
    }

    /// The key with which the next piece ends; `None` when it is the last.
    async fn boundary(&mut self, way: &OnItsWay<'_>, rest: &Chunk) -> Result<Option<Vec<String>>, Error> {
        let (condition, values) = condition(rest, &way.compared);
        let keys = quote::names(way.compared.key.iter().map(|column| &*column.name));
        let statement = format!(
            "SELECT {} FROM {}.{} {condition} ORDER BY {keys} LIMIT 1 OFFSET {}",
            key_texts(&way.compared),
            quote::name(way.schema),
            quote::name(&way.table.name),
            way.piece_rows - 1,
        );
        let doing = format!("find the next piece of {}", way.table.name);
        let found: Vec<Row> = self.from.rows(&doing, &statement, Params::Positional(values)).await?;
        let texts = |row: &Row| (0..way.compared.key.len()).map(|place| row.get(place)).collect();
        Ok(found.first().and_then(texts))
    }

    /// Makes one piece on the target what it is in the view.
    async fn piece(&mut self, way: &OnItsWay<'_>, chunk: &Chunk, totals: (u64, u64)) -> Result<(), Error> {
        if !way.is_fresh {
            let (ours, theirs) = tokio::try_join!(
                digests(&mut self.from, way.schema, &way.compared, chunk),
                digests(&mut self.to, way.schema, &way.compared, chunk)
            )?;
            if ours == theirs {
                self.done.kept += ours.iter().map(|digest| digest.rows).sum::<u64>();
                self.report(totals);
                return Ok(());
            }
            let (condition, values) = condition(chunk, &way.compared);
            let (schema, name) = (quote::name(way.schema), quote::name(&way.table.name));
            let statement = format!("DELETE FROM {schema}.{name} {condition}");
            let doing = format!("remove old rows of {}", way.table.name);
            self.to.run(&doing, &statement, Params::Positional(values)).await?;
        }
        self.carry(way, chunk, totals).await
    }

    fn report(&self, (rows, bytes): (u64, u64)) {
        let done = self.done.rows + self.done.kept;
        self.progress.update(done, self.done.bytes, Some(rows.max(done)), Some(bytes.max(self.done.bytes)));
    }

    /// Reads a piece as a stream and writes it in batches.
    async fn carry(&mut self, way: &OnItsWay<'_>, chunk: &Chunk, totals: (u64, u64)) -> Result<(), Error> {
        let columns: Vec<&tables::Column> = way.table.written().collect();
        let Some(most) = BATCH_VALUES.checked_div(columns.len()) else { return Ok(()) };
        let most = most.clamp(1, BATCH_ROWS);
        let (condition, values) = condition(chunk, &way.compared);
        let read: Vec<String> = columns.iter().map(|column| as_bytes(column)).collect();
        let named = format!("{}.{}", quote::name(way.schema), quote::name(&way.table.name));
        let statement = format!("SELECT {} FROM {named} {condition}", read.join(", "));
        let insert = format!(
            "INSERT INTO {named} ({}) VALUES ",
            quote::names(columns.iter().map(|column| &*column.name))
        );
        let doing = format!("copy {}", way.table.name);
        let (from_side, to_side) = (self.from.side(), self.writer.side());
        let read_error = |error: mysql_async::Error| super::connect::error_of(&doing, &error).on(from_side);
        let mut rows =
            self.from.conn.exec_iter(statement, Params::Positional(values)).await.map_err(read_error)?;
        let mut batch = Batch::default();
        loop {
            let row = rows.next().await.map_err(read_error)?;
            let is_end = row.is_none();
            if let Some(row) = row {
                batch.add(row);
            }
            if batch.rows == most || batch.bytes >= BATCH_BYTES || (is_end && batch.rows > 0) {
                if self.stop.is_cancelled() {
                    return Err(Error::cancelled());
                }
                let places = format!("({})", vec!["?"; columns.len()].join(", "));
                let statement = format!("{insert}{}", vec![&*places; batch.rows].join(", "));
                let values = std::mem::take(&mut batch.values);
                let written = self.writer.conn.exec_drop(statement, Params::Positional(values)).await;
                written.map_err(|error| super::connect::error_of(&doing, &error).on(to_side))?;
                self.done.rows += batch.rows as u64;
                self.done.bytes += batch.bytes;
                batch = Batch::default();
                let done = self.done.rows + self.done.kept;
                let (rows, bytes) = (totals.0.max(done), totals.1.max(self.done.bytes));
                self.progress.update(done, self.done.bytes, Some(rows), Some(bytes));
            }
            if is_end {
                return Ok(());
            }
        }
    }
}

/// A value as it is stored: some kinds are read as text, and not taken back as text by a session that speaks bytes.
fn as_bytes(column: &tables::Column) -> String {
    let name = quote::name(&column.name);
    match word(&column.kind) {
        "uuid" | "inet6" => format!("CAST({name} AS BINARY(16))"),
        "inet4" => format!("CAST({name} AS BINARY(4))"),
        _ => name,
    }
}

#[derive(Default)]
struct Batch {
    values: Vec<Value>,
    rows: usize,
    bytes: u64,
}

impl Batch {
    fn add(&mut self, row: Row) {
        self.rows += 1;
        for value in row.unwrap() {
            self.bytes += match &value {
                Value::Bytes(bytes) => bytes.len() as u64,
                _ => 8,
            };
            self.values.push(value);
        }
    }
}
