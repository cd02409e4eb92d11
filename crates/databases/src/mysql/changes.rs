//! Which rows changed since a position, read from a server's binary log, by the key alone; and what two sides hold of such rows.

use super::connect::{Session, connect, error_of};
use super::tables::{self, Table, bound, row_hash, shown, word};
use super::{gtid, quote};
use crate::end::End;
use crate::verify::Hashes;
use futures::StreamExt;
use mysql_async::binlog::events::{EventData, RowsEventData, TableMapEvent};
use mysql_async::binlog::row::BinlogRow;
use mysql_async::binlog::value::BinlogValue;
use mysql_async::prelude::Queryable;
use mysql_async::{BinlogStreamRequest, Params, Value};
use rehome_part::{Error, ErrorKind, Position, Result, Side};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// The event with which MariaDB begins a transaction.
const GTID: u8 = 162;
/// Rows that the server packed: their kinds, first and last.
const PACKED: std::ops::RangeInclusive<u8> = 165..=171;
/// Keys asked for in one statement.
const ASKED_AT_ONCE: usize = 200;

/// A key as its columns are bound.
pub(super) type Key = Vec<String>;

/// Rows that changed.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pub keys: BTreeMap<String, BTreeSet<Key>>,
    /// Changes of rows that nothing names, by table.
    pub unnamed: BTreeMap<String, u64>,
    /// Not all of it was read.
    pub is_cut: bool,
}

/// What is wanted of a log.
pub(super) struct Wanted<'a> {
    pub schema: &'a str,
    pub tables: &'a [Table],
    pub since: &'a Position,
    /// Only what this server wrote itself.
    pub own_only: bool,
    pub most_keys: usize,
    pub most_time: Duration,
}

/// Reads the log to its end.
pub(super) async fn read(end: &End, side: Side, wanted: &Wanted<'_>) -> Result<Changed> {
    let mut session = connect(&end.address, end.password.as_deref(), side).await?;
    let doing = "read the binary log";
    let (server, head): (u32, String) =
        session.row(doing, "SELECT @@GLOBAL.server_id, @@GLOBAL.gtid_binlog_pos", ()).await?;
    if gtid::covers(wanted.since, &Position(head)) {
        return Ok(Changed::default());
    }
    let state = format!(
        "SET @mariadb_slave_capability = 4, @slave_connect_state = {}, @slave_gtid_strict_mode = 0",
        quote::text(&wanted.since.0)
    );
    let fail = |error: mysql_async::Error| error_of(doing, &error).on(side);
    session.conn.query_drop(state).await.map_err(fail)?;
    // Two readers of one number would end each other.
    let number = fastrand::u32(1 << 30..1 << 31);
    let request = BinlogStreamRequest::new(number).with_non_blocking().with_pos(4);
    let mut stream = session.conn.get_binlog_stream(request).await.map_err(fail)?;
    let until = Instant::now() + wanted.most_time;
    let (mut changed, mut is_counted, mut keys) = (Changed::default(), false, 0);
    while let Some(event) = stream.next().await {
        let event = event.map_err(fail)?;
        let kind = event.header().event_type_raw();
        if kind == GTID {
            is_counted = !wanted.own_only || event.header().server_id() == server;
            if keys >= wanted.most_keys || Instant::now() > until {
                changed.is_cut = true;
                break;
            }
        }
        if PACKED.contains(&kind) {
            let error =
                Error::permanent(ErrorKind::Unsupported, "the binary log is packed and cannot be read here");
            return Err(error.on(side).hint("switch log_bin_compress off"));
        }
        // Kinds that only MariaDB has tell nothing of rows.
        if !is_counted || kind > 40 {
            continue;
        }
        let data = event.read_data().map_err(|error| unreadable(&error, side))?;
        if let Some(EventData::RowsEvent(rows)) = data
            && let Some(map) = stream.get_tme(rows.table_id())
        {
            keys += changed.note(&rows, map, wanted).map_err(|error| unreadable(&error, side))?;
        }
    }
    drop(stream);
    Ok(changed)
}

fn unreadable(error: &dyn std::fmt::Display, side: Side) -> Error {
    Error::permanent(ErrorKind::Corrupt, format!("read the binary log: {error}")).on(side)
}

impl Changed {
    fn note(
        &mut self,
        rows: &RowsEventData<'_>,
        map: &TableMapEvent<'_>,
        wanted: &Wanted<'_>,
    ) -> std::io::Result<usize> {
        if map.database_name() != wanted.schema {
            return Ok(0);
        }
        let Some(table) = wanted.tables.iter().find(|table| table.name == map.table_name()) else {
            return Ok(0);
        };
        let mut count = 0;
        for row in rows.rows(map) {
            let (before, after) = row?;
            for image in [before, after].into_iter().flatten() {
                count += 1;
                match key_of(table, &image) {
                    Some(key) => {
                        self.keys.entry(table.name.clone()).or_default().insert(key);
                    }
                    None => *self.unnamed.entry(table.name.clone()).or_default() += 1,
                }
            }
        }
        Ok(count)
    }

    pub fn count(&self) -> u64 {
        self.keys.values().map(|keys| keys.len() as u64).sum()
    }
}

fn key_of(table: &Table, row: &BinlogRow) -> Option<Key> {
    if table.key.is_empty() {
        return None;
    }
    let part = |place: &usize| {
        let column = &table.columns[*place];
        match row.as_ref(*place)? {
            BinlogValue::Value(value) => as_bound(value, &column.kind, column.charset.as_deref()),
            _ => None,
        }
    };
    table.key.iter().map(part).collect()
}

/// A value of the log as [`place`] takes it; `None` for kinds that this does not read.
fn as_bound(value: &Value, kind: &str, charset: Option<&str>) -> Option<String> {
    match (value, word(kind)) {
        (Value::Int(number), _) if tables::is_integer(kind) => Some(as_written(*number, kind)),
        (Value::UInt(number), _) if tables::is_integer(kind) => Some(number.to_string()),
        (Value::Bytes(bytes), "decimal" | "timestamp") => String::from_utf8(bytes.clone()).ok(),
        (Value::Bytes(bytes), "varbinary") => Some(hex(bytes)),
        (Value::Bytes(bytes), "binary") => {
            // Trailing zeros are not in the log.
            let length = kind.split(['(', ')']).nth(1)?.parse().ok()?;
            let mut bytes = bytes.clone();
            bytes.resize(length, 0);
            Some(hex(&bytes))
        }
        (Value::Bytes(bytes), "char" | "varchar") if charset.is_some() => Some(hex(bytes)),
        (Value::Date(year, month, day, ..), "date") => Some(format!("{year:04}-{month:02}-{day:02}")),
        (Value::Date(year, month, day, hour, minute, second, micros), "datetime") => {
            Some(format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}"))
        }
        _ => None,
    }
}

/// The log does not say that a number has no sign.
fn as_written(number: i64, kind: &str) -> String {
    if !kind.contains("unsigned") || number >= 0 {
        return number.to_string();
    }
    let bits = match word(kind) {
        "tinyint" => 8,
        "smallint" => 16,
        "mediumint" => 24,
        "int" => 32,
        _ => 64,
    };
    (i128::from(number) + (1_i128 << bits)).to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// A parameter that holds what [`as_bound`] wrote.
fn place(column: &tables::Column) -> String {
    match (word(&column.kind), &column.charset) {
        ("char" | "varchar", Some(charset)) => {
            let collation = column.kind.rsplit(' ').next().unwrap_or_default();
            format!("CONVERT(UNHEX(?) USING {charset}) COLLATE {collation}")
        }
        ("timestamp", _) => "FROM_UNIXTIME(?)".to_owned(),
        _ => bound(&column.kind),
    }
}

/// The condition for some rows by their keys.
pub(super) fn matching(table: &Table, keys: &[&Key]) -> (String, Vec<Value>) {
    let one = table.key.iter().map(|place_of| {
        let column = &table.columns[*place_of];
        format!("{} = {}", quote::name(&column.name), place(column))
    });
    let one = format!("({})", one.collect::<Vec<_>>().join(" AND "));
    let values = keys.iter().flat_map(|key| key.iter().map(Value::from)).collect();
    (format!("WHERE {}", vec![one; keys.len()].join(" OR ")), values)
}

/// Hashes of these rows on one side, by the key as people read it.
pub(super) async fn look(
    session: &mut Session,
    schema: &str,
    table: &Table,
    keys: &BTreeSet<Key>,
) -> Result<Hashes> {
    let hash = row_hash(table.columns.iter().map(|column| (&*column.name, &*column.kind)));
    let texts = table.key.iter().map(|place| shown(&table.columns[*place].name, &table.columns[*place].kind));
    let texts = texts.collect::<Vec<_>>().join(", ");
    let named = format!("{}.{}", quote::name(schema), quote::name(&table.name));
    let mut found = Hashes::new();
    let keys: Vec<&Key> = keys.iter().collect();
    for some in keys.chunks(ASKED_AT_ONCE) {
        let (condition, values) = matching(table, some);
        let statement = format!("SELECT {hash}, {texts} FROM {named} {condition}");
        let doing = format!("look at rows of {}", table.name);
        let rows: Vec<mysql_async::Row> =
            session.rows(&doing, &statement, Params::Positional(values)).await?;
        for row in rows {
            let text = |place| row.get::<Option<String>, _>(place).flatten().unwrap_or_default();
            found.insert((1..=table.key.len()).map(text).collect(), (text(0), 1));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_without_a_sign_are_read_as_they_were_written() {
        assert_eq!(as_written(-294_967_296, "int(10) unsigned"), "4000000000");
        assert_eq!(as_written(-1, "bigint(20) unsigned"), u64::MAX.to_string());
        assert_eq!(as_written(-1, "mediumint unsigned"), "16777215");
        assert_eq!(as_written(-1, "int(11)"), "-1");
        assert_eq!(as_bound(&Value::Bytes(vec![1]), "binary(3)", None).unwrap(), "010000");
    }
}
