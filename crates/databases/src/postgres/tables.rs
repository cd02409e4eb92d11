//! The tables of a database as a comparison sees them: columns, and what names a row.

use super::connect::Session;
use super::quote;
use crate::verify::{Column, Table};
use rehome_part::Error;

const TABLES: &str = "
SELECT n.nspname::text, c.relname::text, c.relkind = 'p', greatest(c.reltuples, 0)::float8,
       a.names, a.kinds, a.collated, coalesce(k.names, '{}')
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(a.attname::text ORDER BY a.attnum), '{}') AS names,
           coalesce(array_agg(pg_catalog.format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum), '{}') AS kinds,
           coalesce(array_agg(a.attcollation <> 0 ORDER BY a.attnum), '{}') AS collated
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
) a
LEFT JOIN LATERAL (
    SELECT (SELECT array_agg(a.attname::text ORDER BY p.place)
            FROM unnest(i.indkey::int2[]) WITH ORDINALITY p(number, place)
            JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.number
            WHERE p.place <= i.indnkeyatts) AS names
    FROM pg_catalog.pg_index i
    WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
      AND i.indpred IS NULL AND i.indexprs IS NULL
      AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a
                      WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[]) AND NOT a.attnotnull)
    ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid LIMIT 1
) k ON true
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('information_schema', 'rehome') AND n.nspname !~ '^pg_'
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1, 2";

/// All tables that people made, by name.
///
/// # Errors
/// The catalog cannot be read.
pub(super) async fn read(session: &Session) -> Result<Vec<Table>, Error> {
    let rows = session.rows("read the tables", TABLES, &[]).await?;
    let tables = rows.iter().map(|row| {
        let (names, kinds, collated): (Vec<String>, Vec<String>, Vec<bool>) =
            (row.get(4), row.get(5), row.get(6));
        let columns: Vec<Column> = names
            .into_iter()
            .zip(kinds)
            .zip(collated)
            .map(|((name, kind), is_collated)| Column { name, kind, is_collated })
            .collect();
        let key: Vec<String> = row.get(7);
        let key = key.iter().filter_map(|name| columns.iter().find(|column| column.name == *name).cloned());
        Table {
            schema: row.get(0),
            name: row.get(1),
            is_partitioned: row.get(2),
            key: key.collect(),
            columns,
            rows: row.get::<_, f64>(3) as u64,
        }
    });
    Ok(tables.collect())
}

/// As `FROM` wants it; children by inheritance are tables of their own.
pub(super) fn from(table: &Table) -> String {
    let only = if table.is_partitioned { "" } else { "ONLY " };
    format!("{only}{}", quoted(table))
}

/// As SQL names it.
pub(super) fn quoted(table: &Table) -> String {
    format!("{}.{}", quote::name(&table.schema), quote::name(&table.name))
}
