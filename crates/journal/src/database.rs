//! How the journal's file is opened: durability, permissions, tables, and the format version with its migrations.

use crate::{Error, Result};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

/// A different major is migrated (older) or refused (newer); a different minor only adds things that may be ignored.
pub const FORMAT_MAJOR: u32 = 1;
pub const FORMAT_MINOR: u32 = 0;

/// Brings a journal from format `from` to `from + 1`, inside one transaction with the version's own update.
pub(crate) struct Migration {
    pub from: u32,
    pub change: fn(&Transaction<'_>) -> rusqlite::Result<()>,
}

/// Format 1 is the first that was released; the next major version adds its first row here.
pub(crate) const MIGRATIONS: &[Migration] = &[];

const TABLES: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE event (
    seq INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    step TEXT,
    actor TEXT NOT NULL,
    token INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE TABLE step (
    name TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL,
    input TEXT,
    output TEXT,
    updated_seq INTEGER NOT NULL,
    PRIMARY KEY (name, attempt)
) STRICT;
CREATE TABLE lease (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    holder TEXT NOT NULL,
    token INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    expires_boot_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE guard (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    holder TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    beat_boot_ms INTEGER NOT NULL
) STRICT;
";

/// Makes the run's folder (0700) and an empty file (0600), so that no byte is ever readable by others.
pub(crate) fn make_private(path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        if !folder.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    }
    fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    Ok(())
}

/// A connection that writes durably and waits for others.
pub(crate) fn connect(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    Ok(connection)
}

/// A connection that only looks.
pub(crate) fn connect_to_read(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    Ok(connection)
}

pub(crate) fn create_tables(transaction: &Transaction<'_>, tool: &str) -> Result<()> {
    transaction.execute_batch(TABLES)?;
    set_meta(transaction, "format_major", &FORMAT_MAJOR.to_string())?;
    set_meta(transaction, "format_minor", &FORMAT_MINOR.to_string())?;
    set_meta(transaction, "tool_version", tool)
}

pub(crate) fn set_meta(connection: &Connection, key: &str, value: &str) -> Result<()> {
    connection.execute(
        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
        [key, value],
    )?;
    Ok(())
}

pub(crate) fn meta(connection: &Connection, key: &str) -> Result<Option<String>> {
    Ok(connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()?)
}

fn number(connection: &Connection, key: &str) -> Result<u32> {
    Ok(meta(connection, key)?.and_then(|text| text.parse().ok()).unwrap_or(0))
}

/// Refuses a newer major version; says how far an older one is behind.
pub(crate) fn check_format(connection: &Connection) -> Result<u32> {
    let found = number(connection, "format_major")?;
    if found > FORMAT_MAJOR {
        return Err(Error::Newer {
            tool: meta(connection, "tool_version")?.unwrap_or_else(|| "of an unknown version".into()),
            found_major: found,
            found_minor: number(connection, "format_minor")?,
            known: FORMAT_MAJOR,
        });
    }
    Ok(found)
}

/// Brings an older journal to `known`, one version at a time, each in a transaction of its own.
pub(crate) fn migrate(connection: &mut Connection, migrations: &[Migration], known: u32) -> Result<()> {
    loop {
        let found = number(connection, "format_major")?;
        if found >= known {
            return Ok(());
        }
        let Some(migration) = migrations.iter().find(|migration| migration.from == found) else {
            return Err(Error::TooOld { found, known });
        };
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        (migration.change)(&transaction)?;
        set_meta(&transaction, "format_major", &(found + 1).to_string())?;
        set_meta(&transaction, "format_minor", "0")?;
        transaction.commit()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        let transaction = connection.transaction().unwrap();
        create_tables(&transaction, "test").unwrap();
        transaction.commit().unwrap();
        connection
    }

    const STEPS: &[Migration] = &[
        Migration { from: 1, change: |t| t.execute_batch("ALTER TABLE event ADD COLUMN note TEXT") },
        Migration { from: 2, change: |t| t.execute_batch("UPDATE event SET note = kind") },
    ];

    #[test]
    fn an_older_journal_is_brought_up_to_date_step_by_step() {
        let mut connection = database();
        connection.execute("INSERT INTO event VALUES (1, 0, 'paused', NULL, 'a', 1, '{}')", []).unwrap();
        migrate(&mut connection, STEPS, 3).unwrap();
        let note: String = connection.query_row("SELECT note FROM event", [], |row| row.get(0)).unwrap();
        assert_eq!(note, "paused");
        assert_eq!(number(&connection, "format_major").unwrap(), 3);
        migrate(&mut connection, STEPS, 3).unwrap(); // again: nothing to do
    }

    #[test]
    fn a_failed_migration_changes_nothing() {
        let mut connection = database();
        let broken = &[Migration {
            from: 1,
            change: |t| t.execute_batch("ALTER TABLE event ADD COLUMN note TEXT; SELECT nonsense"),
        }];
        assert!(migrate(&mut connection, broken, 2).is_err());
        assert_eq!(number(&connection, "format_major").unwrap(), 1);
        assert!(connection.execute("UPDATE event SET note = ''", []).is_err());
    }

    #[test]
    fn a_version_without_a_way_forward_is_refused() {
        let mut connection = database();
        set_meta(&connection, "format_major", "0").unwrap();
        let error = migrate(&mut connection, MIGRATIONS, FORMAT_MAJOR).unwrap_err();
        assert!(matches!(error, Error::TooOld { found: 0, known: FORMAT_MAJOR }));
    }
}
