//! The statements of a comparison: where a piece ends, its sums, and its rows.

use super::connect::{Session, connect};
use super::quote;
use super::tables::{self, from};
use crate::address::Address;
use crate::verify::{Chunk, Column, Digest, Hashes, Reads, Table};
use rehome_part::{Error, ErrorKind, Side};
use std::fmt::Write;
use tokio_postgres::types::ToSql;

/// Digits of a hash that make a bucket: 4096 of them.
const BUCKET_DIGITS: usize = 3;

impl Reads for Session {
    async fn open(address: &Address, password: Option<&str>, side: Side) -> Result<Self, Error> {
        connect(address, password, side).await
    }

    async fn tables(&self) -> Result<Vec<Table>, Error> {
        tables::read(self).await
    }

    async fn boundary(&self, table: &Table, rest: &Chunk, rows: u32) -> Result<Option<Vec<String>>, Error> {
        boundary(self, table, rest, rows).await
    }

    async fn cuts(&self, table: &Table, parts: usize) -> Result<Vec<Vec<String>>, Error> {
        cuts(self, table, parts).await
    }

    async fn digests(&self, table: &Table, chunk: &Chunk) -> Result<Vec<Digest>, Error> {
        digests(self, table, chunk).await
    }

    async fn hashes(&self, table: &Table, chunk: &Chunk) -> Result<Hashes, Error> {
        hashes(self, table, chunk).await
    }
}

/// The condition for the rows of a piece, with parameters from `$1` on.
fn condition<'a>(chunk: &'a Chunk, table: &Table) -> (String, Vec<&'a str>) {
    let mut text = String::new();
    let mut values: Vec<&str> = Vec::new();
    match chunk {
        Chunk::Whole => {}
        Chunk::Bucket(bucket) => {
            text = format!("WHERE {} = $1", bucket_of(table));
            values.push(bucket);
        }
        Chunk::Range { after, until } => {
            for (bound, sign) in [(after, ">"), (until, "<=")] {
                let Some(bound) = bound else { continue };
                let word = if text.is_empty() { "WHERE" } else { " AND" };
                let (keys, places) = comparison(&table.key, values.len());
                // Writing to a string does not fail.
                let _ = write!(text, "{word} ({keys}) {sign} ({places})");
                values.extend(bound.iter().map(String::as_str));
            }
        }
    }
    (text, values)
}

/// The key's columns, and parameters of their types behind `taken` others.
fn comparison(key: &[Column], taken: usize) -> (String, String) {
    let places: Vec<String> = key
        .iter()
        .enumerate()
        .map(|(place, column)| format!("(${}::text)::{}", taken + place + 1, column.kind))
        .collect();
    (quote::names(key.iter().map(|column| &*column.name)), places.join(", "))
}

fn row_hash(columns: &[Column]) -> String {
    format!("md5(ROW({})::text)", quote::names(columns.iter().map(|column| &*column.name)))
}

/// By the key, so that both states of a row are in one bucket; without a key by the row itself.
fn bucket_of(table: &Table) -> String {
    let by = if table.key.is_empty() { &table.columns } else { &table.key };
    format!("substr({}, 1, {BUCKET_DIGITS})", row_hash(by))
}

fn parameters<'a>(values: &'a [&'a str]) -> Vec<&'a (dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

/// The key of the row with which a piece of `rows` rows at the beginning of `rest` ends; `None` when it holds fewer.
async fn boundary(
    session: &Session,
    table: &Table,
    rest: &Chunk,
    rows: u32,
) -> Result<Option<Vec<String>>, Error> {
    let (condition, values) = condition(rest, table);
    nth_key(session, table, &condition, &values, rows.max(1) - 1).await
}

async fn nth_key(
    session: &Session,
    table: &Table,
    condition: &str,
    values: &[&str],
    skipped: u32,
) -> Result<Option<Vec<String>>, Error> {
    let order = quote::names(table.key.iter().map(|column| &*column.name));
    key_at(session, table, condition, values, &order, skipped).await
}

async fn key_at(
    session: &Session,
    table: &Table,
    condition: &str,
    values: &[&str],
    order: &str,
    skipped: u32,
) -> Result<Option<Vec<String>>, Error> {
    let keys = quote::names(table.key.iter().map(|column| &*column.name));
    let texts: Vec<String> =
        table.key.iter().map(|column| format!("{}::text", quote::name(&column.name))).collect();
    let statement = format!(
        "SELECT to_json(ARRAY[{}])::text FROM (SELECT {keys} FROM {} {condition} ORDER BY {order} OFFSET {skipped} LIMIT 1) piece",
        texts.join(", "),
        from(table),
    );
    let doing = format!("find the next piece of {}", table.shown());
    let found = session.asked(&doing, &inlined(&statement, values)).await?;
    found.first().and_then(|row| row.get(0)).map(key_in).transpose()
}

fn key_in(text: &str) -> Result<Vec<String>, Error> {
    serde_json::from_str(text)
        .map_err(|error| Error::permanent(ErrorKind::Corrupt, format!("a key that makes no sense: {error}")))
}

/// A statement with its parameters, all of them text, put in as literals: it is answered in one round trip.
fn inlined(statement: &str, values: &[&str]) -> String {
    let mut text = String::with_capacity(statement.len());
    let mut rest = statement;
    while let Some(at) = rest.find('$') {
        let (before, parameter) = rest.split_at(at);
        text.push_str(before);
        let digits = parameter.bytes().skip(1).take_while(u8::is_ascii_digit).count();
        let number: Option<usize> = parameter.get(1..=digits).and_then(|digits| digits.parse().ok());
        match number.and_then(|number| values.get(number.checked_sub(1)?)) {
            Some(value) => text.push_str(&quote::literal(value)),
            None => text.push_str(parameter.get(..=digits).unwrap_or("$")),
        }
        rest = parameter.get(digits + 1..).unwrap_or_default();
    }
    text.push_str(rest);
    text
}

/// The last `rows` rows by key, and all that come behind them.
pub(super) async fn newest(session: &Session, table: &Table, rows: u32) -> Result<Chunk, Error> {
    let backwards: Vec<String> =
        table.key.iter().map(|column| format!("{} DESC", quote::name(&column.name))).collect();
    let after = key_at(session, table, "", &[], &backwards.join(", "), rows).await?;
    Ok(Chunk::Range { after, until: None })
}

/// Keys that cut a table into about `parts` equal ranges, by what the server knows of its values; none where it knows nothing.
async fn cuts(session: &Session, table: &Table, parts: usize) -> Result<Vec<Vec<String>>, Error> {
    let Some(first) = table.key.first() else { return Ok(Vec::new()) };
    let statement = "SELECT histogram_bounds::text::text[] FROM pg_stats
                     WHERE schemaname = $1 AND tablename = $2 AND attname = $3 AND histogram_bounds IS NOT NULL
                     ORDER BY inherited DESC LIMIT 1";
    let doing = format!("read the statistics of {}", table.shown());
    let known = session.rows(&doing, statement, &[&table.schema, &table.name, &first.name]).await?;
    let bounds: Vec<String> = known.first().map(|row| row.get(0)).unwrap_or_default();
    let mut cuts: Vec<Vec<String>> = Vec::new();
    for part in 1..parts {
        let Some(bound) = bounds.get(part * bounds.len() / parts).filter(|_| bounds.len() >= parts) else {
            continue;
        };
        let condition = format!("WHERE {} >= ($1::text)::{}", quote::name(&first.name), first.kind);
        // A key that is there, since the bound may be a part of one.
        let key = nth_key(session, table, &condition, &[bound], 0).await?;
        cuts.extend(key.filter(|key| cuts.last() != Some(key)));
    }
    Ok(cuts)
}

/// The sums of a piece; of a whole table by bucket.
pub(super) async fn digests(session: &Session, table: &Table, chunk: &Chunk) -> Result<Vec<Digest>, Error> {
    let (condition, values) = condition(chunk, table);
    let bucket = if *chunk == Chunk::Whole { bucket_of(table) } else { "''".to_owned() };
    let half =
        |from: u32| format!("coalesce(sum(('x' || substr(h, {from}, 16))::bit(64)::int8::numeric), 0)::text");
    let statement = format!(
        "SELECT b, count(*)::int8, {}, {} FROM (SELECT {bucket} AS b, {} AS h FROM {} {condition}) hashed GROUP BY b ORDER BY b",
        half(1),
        half(17),
        row_hash(&table.columns),
        from(table),
    );
    let doing = format!("sum up {}", table.shown());
    let rows = session.asked(&doing, &inlined(&statement, &values)).await?;
    let digest = |row: &tokio_postgres::SimpleQueryRow| {
        let text = |place: usize| row.get(place).unwrap_or_default().to_owned();
        Digest { bucket: text(0), rows: text(1).parse().unwrap_or_default(), sums: [text(2), text(3)] }
    };
    Ok(rows.iter().map(digest).collect())
}

pub(super) async fn hashes(session: &Session, table: &Table, chunk: &Chunk) -> Result<Hashes, Error> {
    let (condition, values) = condition(chunk, table);
    let key = match table.key.is_empty() {
        true => row_hash(&table.columns),
        false => {
            let texts = table.key.iter().map(|column| format!("{}::text", quote::name(&column.name)));
            texts.collect::<Vec<_>>().join(", ")
        }
    };
    let statement = format!(
        "SELECT k, min(h), count(*)::int8 FROM (SELECT ARRAY[{key}] AS k, {} AS h FROM {} {condition}) hashed GROUP BY k",
        row_hash(&table.columns),
        from(table),
    );
    let doing = format!("look at rows of {}", table.shown());
    let rows = session.rows(&doing, &statement, &parameters(&values)).await?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}
