//! The statements of a comparison: where a piece ends, its sums, and its rows.

use super::connect::{Session, connect};
use super::quote;
use super::tables::{self, bound, is_integer, row_hash, shown};
use crate::address::Address;
use crate::verify::{Chunk, Column, Digest, Hashes, Reads, Table};
use mysql_async::{Params, Value};
use rehome_part::{Error, Side};
use tokio::sync::Mutex;

/// Digits of a hash that make a bucket: 4096 of them.
const BUCKET_DIGITS: usize = 3;

/// A session that reads one schema.
pub(crate) struct Reader {
    session: Mutex<Session>,
    schema: String,
}

impl Reads for Reader {
    async fn open(address: &Address, password: Option<&str>, side: Side) -> Result<Self, Error> {
        let mut session = connect(address, password, side).await?;
        session.say("prepare a session", "SET SESSION TRANSACTION READ ONLY").await?;
        Ok(Self { session: Mutex::new(session), schema: address.database.clone() })
    }

    async fn tables(&self) -> Result<Vec<Table>, Error> {
        let tables = tables::read(&mut *self.session.lock().await, &self.schema).await?;
        Ok(tables.iter().map(tables::Table::compared).collect())
    }

    async fn boundary(&self, table: &Table, rest: &Chunk, rows: u32) -> Result<Option<Vec<String>>, Error> {
        let (condition, values) = condition(rest, table);
        self.nth_key(table, &condition, values, rows.max(1) - 1).await
    }

    /// Equal steps between the smallest and the largest number: the server keeps no statistics that would tell better.
    async fn cuts(&self, table: &Table, parts: usize) -> Result<Vec<Vec<String>>, Error> {
        let Some(first) = table.key.first().filter(|column| is_integer(&column.kind)) else {
            return Ok(Vec::new());
        };
        let name = quote::name(&first.name);
        let statement =
            format!("SELECT CAST(MIN({name}) AS CHAR), CAST(MAX({name}) AS CHAR) FROM {}", self.from(table));
        let doing = format!("find the ends of {}", table.shown());
        let ends: (Option<String>, Option<String>) =
            self.session.lock().await.row(&doing, &statement, ()).await?;
        let number = |text: Option<String>| text.and_then(|text| text.parse::<i128>().ok());
        let (Some(least), Some(most)) = (number(ends.0), number(ends.1)) else { return Ok(Vec::new()) };
        let mut cuts: Vec<Vec<String>> = Vec::new();
        for part in 1..parts {
            let at = least + (most - least) * part as i128 / parts as i128;
            let condition = format!("WHERE {name} >= {}", bound(&first.kind));
            // A key that is there, since the bound may be a part of one.
            let key = self.nth_key(table, &condition, vec![at.to_string().into()], 0).await?;
            cuts.extend(key.filter(|key| cuts.last() != Some(key)));
        }
        Ok(cuts)
    }

    async fn digests(&self, table: &Table, chunk: &Chunk) -> Result<Vec<Digest>, Error> {
        digests(&mut *self.session.lock().await, &self.schema, table, chunk).await
    }

    async fn hashes(&self, table: &Table, chunk: &Chunk) -> Result<Hashes, Error> {
        let (condition, values) = condition(chunk, table);
        let hash = hash_of(&table.columns);
        let key = if table.key.is_empty() { hash.clone() } else { key_texts(table) };
        let places = table.key.len().max(1);
        let statement = format!(
            "SELECT {hash}, COUNT(*), {key} FROM {} {condition} GROUP BY {}",
            self.from(table),
            // Equal rows without a key are counted; with one, no two rows have the same.
            if table.key.is_empty() {
                "1".to_owned()
            } else {
                quote::names(table.key.iter().map(|column| &*column.name))
            },
        );
        let doing = format!("look at rows of {}", table.shown());
        let rows: Vec<mysql_async::Row> =
            self.session.lock().await.rows(&doing, &statement, Params::Positional(values)).await?;
        let text = |row: &mysql_async::Row, place| row.get::<Option<String>, _>(place).flatten();
        let hashed = |row: mysql_async::Row| {
            let key = (2..2 + places).map(|place| text(&row, place).unwrap_or_default()).collect();
            (key, (text(&row, 0).unwrap_or_default(), row.get::<i64, _>(1).unwrap_or_default()))
        };
        Ok(rows.into_iter().map(hashed).collect())
    }
}

impl Reader {
    fn from(&self, table: &Table) -> String {
        format!("{}.{}", quote::name(&self.schema), quote::name(&table.name))
    }

    async fn nth_key(
        &self,
        table: &Table,
        condition: &str,
        values: Vec<Value>,
        skipped: u32,
    ) -> Result<Option<Vec<String>>, Error> {
        let keys = quote::names(table.key.iter().map(|column| &*column.name));
        let statement = format!(
            "SELECT {} FROM {} {condition} ORDER BY {keys} LIMIT 1 OFFSET {skipped}",
            key_texts(table),
            self.from(table),
        );
        let doing = format!("find the next piece of {}", table.shown());
        let found: Vec<mysql_async::Row> =
            self.session.lock().await.rows(&doing, &statement, Params::Positional(values)).await?;
        let texts = |row: &mysql_async::Row| (0..table.key.len()).map(|place| row.get(place)).collect();
        Ok(found.first().and_then(texts))
    }
}

pub(super) fn key_texts(table: &Table) -> String {
    let texts = table.key.iter().map(|column| shown(&column.name, &column.kind));
    texts.collect::<Vec<_>>().join(", ")
}

fn hash_of(columns: &[Column]) -> String {
    row_hash(columns.iter().map(|column| (&*column.name, &*column.kind)))
}

/// By the key, so that both states of a row are in one bucket; without a key by the row itself.
fn bucket_of(table: &Table) -> String {
    let by = if table.key.is_empty() { &table.columns } else { &table.key };
    format!("SUBSTR({}, 1, {BUCKET_DIGITS})", hash_of(by))
}

/// The sums of a piece; of a whole table by bucket.
pub(super) async fn digests(
    session: &mut Session,
    schema: &str,
    table: &Table,
    chunk: &Chunk,
) -> Result<Vec<Digest>, Error> {
    let (condition, values) = condition(chunk, table);
    let bucket = if *chunk == Chunk::Whole { bucket_of(table) } else { "''".to_owned() };
    let half = |from: u32| {
        format!("CAST(COALESCE(SUM(CAST(CONV(SUBSTR(h, {from}, 16), 16, 10) AS DECIMAL(20, 0))), 0) AS CHAR)")
    };
    let statement = format!(
        "SELECT b, COUNT(*), {}, {} FROM (SELECT {bucket} AS b, {} AS h FROM {}.{} {condition}) hashed \
         GROUP BY b ORDER BY b",
        half(1),
        half(17),
        hash_of(&table.columns),
        quote::name(schema),
        quote::name(&table.name),
    );
    let doing = format!("sum up {}", table.shown());
    let rows: Vec<(String, u64, String, String)> =
        session.rows(&doing, &statement, Params::Positional(values)).await?;
    let digest = |(bucket, rows, one, other)| Digest { bucket, rows, sums: [one, other] };
    Ok(rows.into_iter().map(digest).collect())
}

/// The condition for the rows of a piece, and its values.
pub(super) fn condition(chunk: &Chunk, table: &Table) -> (String, Vec<Value>) {
    let mut all = Vec::new();
    let mut values = Vec::new();
    match chunk {
        Chunk::Whole => {}
        Chunk::Bucket(bucket) => {
            all.push(format!("{} = ?", bucket_of(table)));
            values.push(bucket.into());
        }
        Chunk::Range { after, until } => {
            if let Some(after) = after {
                all.push(beyond(&table.key, ">", ">", after, &mut values));
            }
            if let Some(until) = until {
                all.push(beyond(&table.key, "<", "<=", until, &mut values));
            }
        }
    }
    match all.is_empty() {
        true => (String::new(), values),
        false => (format!("WHERE {}", all.join(" AND ")), values),
    }
}

/// `(a, b) > (x, y)` as these servers use an index for it: a bound of the first column, and the rest behind it.
fn beyond(key: &[Column], sign: &str, last_sign: &str, limit: &[String], values: &mut Vec<Value>) -> String {
    let Some((first, rest)) = key.split_first() else { return "TRUE".to_owned() };
    let Some((value, limits)) = limit.split_first() else { return "TRUE".to_owned() };
    let (name, place) = (quote::name(&first.name), bound(&first.kind));
    if rest.is_empty() {
        values.push(value.into());
        return format!("{name} {last_sign} {place}");
    }
    for _ in 0..3 {
        values.push(value.into());
    }
    let rest = beyond(rest, sign, last_sign, limits, values);
    format!("({name} {sign}= {place} AND ({name} {sign} {place} OR ({name} = {place} AND {rest})))")
}
