//! The tables of one schema: columns, what names a row, and how a value is written so that two servers write it alike.

use super::connect::Session;
use super::quote;
use crate::verify;
use rehome_part::Error;
use std::collections::BTreeMap;

/// A plain table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub name: String,
    pub engine: String,
    pub columns: Vec<Column>,
    /// Places of the columns of the primary key, or of another unique index without nulls. Empty: nothing names a row.
    pub key: Vec<usize>,
    /// The server's own guess.
    pub rows: u64,
    pub bytes: u64,
    /// Keeps old versions of its rows.
    pub is_versioned: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub name: String,
    /// As `CREATE TABLE` writes it, with its collation behind.
    pub kind: String,
    pub charset: Option<String>,
    pub is_generated: bool,
}

type ColumnRow = (String, String, String, Option<String>, Option<String>, String);

/// All tables of a schema, by name.
///
/// # Errors
/// The catalog cannot be read.
pub(super) async fn read(session: &mut Session, schema: &str) -> Result<Vec<Table>, Error> {
    const TABLES: &str = "SELECT TABLE_NAME, COALESCE(ENGINE, ''), COALESCE(TABLE_ROWS, 0),
            COALESCE(DATA_LENGTH, 0) + COALESCE(INDEX_LENGTH, 0), TABLE_TYPE = 'SYSTEM VERSIONED'
        FROM information_schema.TABLES
        WHERE TABLE_SCHEMA = ? AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') ORDER BY TABLE_NAME";
    const COLUMNS: &str =
        "SELECT TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, CHARACTER_SET_NAME, COLLATION_NAME, EXTRA
        FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = ? ORDER BY TABLE_NAME, ORDINAL_POSITION";
    const KEYS: &str =
        "SELECT TABLE_NAME, INDEX_NAME, COLUMN_NAME, COALESCE(SUB_PART, 0) <> 0 OR NULLABLE = 'YES'
        FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = ? AND NON_UNIQUE = 0
        ORDER BY TABLE_NAME, INDEX_NAME <> 'PRIMARY', INDEX_NAME, SEQ_IN_INDEX";
    let doing = "read the tables";
    let tables: Vec<(String, String, u64, u64, bool)> = session.rows(doing, TABLES, (schema,)).await?;
    let columns: Vec<ColumnRow> = session.rows(doing, COLUMNS, (schema,)).await?;
    let keys: Vec<(String, String, Option<String>, bool)> = session.rows(doing, KEYS, (schema,)).await?;
    let mut by_table: BTreeMap<String, Vec<Column>> = BTreeMap::new();
    for (table, name, kind, charset, collation, extra) in columns {
        let kind = collation.map_or(kind.clone(), |collation| format!("{kind} {collation}"));
        let extra = extra.to_uppercase();
        let is_generated = ["VIRTUAL", "STORED", "PERSISTENT"].iter().any(|word| extra.starts_with(word));
        by_table.entry(table).or_default().push(Column { name, kind, charset, is_generated });
    }
    let mut table_of = |(name, engine, rows, bytes, is_versioned): (String, String, u64, u64, bool)| {
        let columns = by_table.remove(&name).unwrap_or_default();
        let key = key(&name, &columns, &keys);
        Table { name, engine, columns, key, rows, bytes, is_versioned }
    };
    Ok(tables.into_iter().map(&mut table_of).collect())
}

/// The first index that names every row.
fn key(table: &str, columns: &[Column], keys: &[(String, String, Option<String>, bool)]) -> Vec<usize> {
    let mut indexes: Vec<(&str, Option<Vec<usize>>)> = Vec::new();
    for (_, index, column, is_loose) in keys.iter().filter(|(of, ..)| of == table) {
        if indexes.last().is_none_or(|(last, _)| last != index) {
            indexes.push((index, Some(Vec::new())));
        }
        let place = column.as_ref().and_then(|name| columns.iter().position(|one| one.name == *name));
        let Some((_, places)) = indexes.last_mut() else { continue };
        match (place, is_loose) {
            (Some(place), false) => places.iter_mut().for_each(|places| places.push(place)),
            // An expression, a prefix, or nulls: two rows may be alike in it.
            _ => *places = None,
        }
    }
    indexes.into_iter().find_map(|(_, places)| places).unwrap_or_default()
}

impl Table {
    /// As a comparison sees it. One schema is compared with one: names need no schema.
    pub fn compared(&self) -> verify::Table {
        let column = |column: &Column| verify::Column {
            name: column.name.clone(),
            kind: column.kind.clone(),
            is_collated: !has_order(&column.kind),
        };
        verify::Table {
            schema: String::new(),
            name: self.name.clone(),
            is_partitioned: false,
            columns: self.columns.iter().map(column).collect(),
            key: self.key.iter().map(|place| column(&self.columns[*place])).collect(),
            rows: self.rows,
        }
    }

    /// The columns that take values.
    pub fn written(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| !column.is_generated)
    }
}

/// The bare word of a kind: `varchar` of `varchar(255) utf8mb4_general_ci`.
pub(super) fn word(kind: &str) -> &str {
    kind.split(['(', ' ']).next().unwrap_or_default()
}

pub(super) fn is_integer(kind: &str) -> bool {
    matches!(word(kind), "tinyint" | "smallint" | "mediumint" | "int" | "bigint")
}

/// Can its values be put in an order that a bound as text does not change?
fn has_order(kind: &str) -> bool {
    let others = ["decimal", "date", "datetime", "timestamp", "char", "varchar", "binary", "varbinary"];
    is_integer(kind) || others.contains(&word(kind))
}

/// A value as text that people can read and [`bound`] understands.
pub(super) fn shown(column: &str, kind: &str) -> String {
    let name = quote::name(column);
    match word(kind) {
        "binary" | "varbinary" | "bit" => format!("HEX({name})"),
        "char" | "varchar" | "enum" | "set" => format!("CONVERT({name} USING utf8mb4)"),
        _ => format!("CAST({name} AS CHAR)"),
    }
}

/// A parameter that holds what [`shown`] wrote, as a value of this kind.
pub(super) fn bound(kind: &str) -> String {
    match word(kind) {
        _ if is_integer(kind) && kind.contains("unsigned") => "CAST(? AS UNSIGNED)".to_owned(),
        _ if is_integer(kind) => "CAST(? AS SIGNED)".to_owned(),
        "decimal" => format!("CAST(? AS {})", kind.split(' ').next().unwrap_or("decimal(65,30)")),
        "date" => "CAST(? AS DATE)".to_owned(),
        "datetime" | "timestamp" => "CAST(? AS DATETIME(6))".to_owned(),
        "binary" | "varbinary" | "bit" => "UNHEX(?)".to_owned(),
        _ => "?".to_owned(),
    }
}

/// A hash of a row's values in these columns. Each value is written with its length, so that no two rows are written alike; long
/// ones by their own hash, since a server makes a text that is too long into nothing.
pub(super) fn row_hash<'a>(columns: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let parts: Vec<String> = columns
        .map(|(name, kind)| {
            let value = whole(name, kind);
            format!("IFNULL(CONCAT(LENGTH({value}), ':', {value}), '-')")
        })
        .collect();
    if parts.is_empty() { "MD5('')".to_owned() } else { format!("MD5(CONCAT({}))", parts.join(", ")) }
}

/// All of a value, byte for byte.
fn whole(column: &str, kind: &str) -> String {
    let name = quote::name(column);
    match word(kind) {
        // As text it would lose its last digits.
        "float" => format!("CAST(CAST({name} AS DOUBLE) AS BINARY)"),
        "bit" => format!("CAST({name} + 0 AS BINARY)"),
        "char" | "varchar" | "enum" | "set" => format!("CAST(CONVERT({name} USING utf8mb4) AS BINARY)"),
        "tinytext" | "text" | "mediumtext" | "longtext" => format!("MD5(CONVERT({name} USING utf8mb4))"),
        "tinyblob" | "blob" | "mediumblob" | "longblob" => format!("MD5({name})"),
        "json" => format!("MD5(CAST({name} AS CHAR CHARACTER SET utf8mb4))"),
        "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring"
        | "multipolygon" | "geometrycollection" => {
            format!("MD5(CONCAT(ST_SRID({name}), ST_AsBinary({name})))")
        }
        "binary" | "varbinary" => name,
        _ => format!("CAST(CAST({name} AS CHAR) AS BINARY)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_of_its_columns_kind() {
        assert_eq!(bound("bigint(20) unsigned"), "CAST(? AS UNSIGNED)");
        assert_eq!(bound("decimal(12,2)"), "CAST(? AS decimal(12,2))");
        assert_eq!(bound("varchar(20) latin1_swedish_ci"), "?");
        assert!(has_order("datetime(6)") && !has_order("double") && !has_order("uuid"));
    }
}
