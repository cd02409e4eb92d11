//! What the mover remembers of one pair of stores: which versions on both sides are the same content, unfinished uploads,
//! positions, losses and facts. One SQLite file, one connection. It never talks to a store.
//!
//! Marks and losses wait in memory until [`State::settle`] (or their number) writes them in one transaction; everything
//! else is committed when the call returns. No transaction is open between calls, so several processes can share the file.
//! A kill costs at most the marks since the last settle, and those objects are compared or copied again.

use super::digest::Digest;
use crate::store::{Entry, UploadedPart};
use rehome_part::{Error, ErrorKind, Finding, Flow, Position, Result, Severity, Side};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Raised when a table changes; a file of another format is refused, never guessed at.
const FORMAT: i64 = 1;
/// Marks held in memory before they are written without being asked.
const MARKS_HELD: usize = 512;
/// A follower that said nothing for so long is dead (or about to be).
const BEAT_LIMIT_MILLIS: i64 = 5_000;

const SCHEMA: &str = "
CREATE TABLE marks (key TEXT PRIMARY KEY, done INTEGER NOT NULL,
  source_etag TEXT, source_size INTEGER, source_modified INTEGER,
  target_etag TEXT, target_size INTEGER, target_modified INTEGER) WITHOUT ROWID;
CREATE TABLE uploads (side TEXT, key TEXT, id TEXT NOT NULL, etag TEXT, modified INTEGER, size INTEGER NOT NULL,
  part_size INTEGER NOT NULL, PRIMARY KEY (side, key)) WITHOUT ROWID;
CREATE TABLE parts (side TEXT, key TEXT, number INTEGER, etag TEXT NOT NULL, size INTEGER NOT NULL,
  crc64nvme INTEGER NOT NULL, crc64xz INTEGER NOT NULL, crc32c INTEGER NOT NULL,
  PRIMARY KEY (side, key, number)) WITHOUT ROWID;
CREATE TABLE positions (flow TEXT PRIMARY KEY, applied TEXT NOT NULL, current_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE passes (flow TEXT, number INTEGER, begun_at INTEGER NOT NULL, PRIMARY KEY (flow, number)) WITHOUT ROWID;
CREATE TABLE losses (key TEXT PRIMARY KEY, id TEXT NOT NULL, text TEXT NOT NULL, remedy TEXT) WITHOUT ROWID;
CREATE TABLE notices (text TEXT PRIMARY KEY, finding TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE strangers (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE beats (flow TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
";

/// A version of an object as we saw it on one side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub etag: Option<String>,
    pub size: Option<u64>,
    /// Milliseconds since 1970.
    pub modified: Option<i64>,
}

impl Seen {
    /// Is this entry the version we saw? `None` when nothing but the size could be compared.
    pub fn is(&self, entry: &Entry) -> Option<bool> {
        if self.size != Some(entry.size) {
            return Some(false);
        }
        let tags = self.etag.as_ref().zip(entry.etag.as_ref()).map(|(a, b)| a == b);
        // Answers to GET carry whole seconds, listings milliseconds.
        let times =
            self.modified.zip(entry.modified).map(|(a, b)| a.div_euclid(1_000) == b.div_euclid(1_000));
        match (tags, times) {
            (None, None) => None,
            (tags, times) => Some(tags.unwrap_or(true) && times.unwrap_or(true)),
        }
    }
}

/// "These two versions are the same content", or only "we are about to write this key" while `done` is false.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub done: bool,
    pub source: Seen,
    pub target: Seen,
}

impl Mark {
    pub fn of(&self, side: Side) -> &Seen {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    pub fn new(flow: Flow, from: Seen, to: Seen) -> Self {
        match flow {
            Flow::Forward => Self { done: true, source: from, target: to },
            Flow::Reverse => Self { done: true, source: to, target: from },
        }
    }
}

/// A multipart write that was begun and not completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenUpload {
    pub id: String,
    pub etag: Option<String>,
    pub modified: Option<i64>,
    pub size: u64,
    pub part_size: u64,
}

/// The applied position of a flow, and when (wall clock, milliseconds since 1970) it was last known to be the newest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Applied {
    pub position: Position,
    pub current_at: i64,
}

#[derive(Debug)]
struct Inner {
    connection: Connection,
    /// Marks not yet written; `None` forgets the key.
    marks: HashMap<String, Option<Mark>>,
    /// Losses not yet written; `None` takes back what was said of the key.
    losses: HashMap<String, Option<Loss>>,
    /// Something is or may be in the table `losses`; otherwise copies need not look there.
    has_losses: bool,
}

#[derive(Debug, Clone)]
struct Loss {
    id: String,
    text: String,
    remedy: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct State {
    inner: Mutex<Inner>,
}

fn local(error: rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => ErrorKind::Full,
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => ErrorKind::Corrupt,
        _ => ErrorKind::Other,
    };
    Error::permanent(kind, format!("state database: {error}"))
}

/// SQLite's integers are signed; nothing here comes near 2^63.
fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.max(0).cast_unsigned())
}

fn some_number(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(|n| n.max(0).cast_unsigned()))
}

fn side_name(side: Side) -> &'static str {
    match side {
        Side::Source => "source",
        Side::Target => "target",
    }
}

fn flow_name(flow: Flow) -> &'static str {
    match flow {
        Flow::Forward => "forward",
        Flow::Reverse => "reverse",
    }
}

pub(crate) fn wall_millis() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

impl State {
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| {
                Error::permanent(ErrorKind::Other, format!("cannot make {}: {e}", folder.display()))
            })?;
        }
        let connection = Connection::open(path).map_err(local)?;
        connection.busy_timeout(Duration::from_secs(10)).map_err(local)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(local)?;
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(local)?;
        let format: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(local)?;
        match format {
            0 => {
                let sql = format!("BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;");
                if let Err(error) = connection.execute_batch(&sql) {
                    // Somebody else may have made the tables between our look and our write.
                    let _ = connection.execute_batch("ROLLBACK");
                    let now: i64 =
                        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(local)?;
                    if now != FORMAT {
                        return Err(local(error));
                    }
                }
            }
            FORMAT => {}
            other => {
                return Err(Error::permanent(
                    ErrorKind::Unsupported,
                    format!("{} has format {other}, this program knows {FORMAT}", path.display()),
                )
                .hint("use the version of rehome that began this work"));
            }
        }
        let has_losses = connection
            .query_row("SELECT EXISTS (SELECT * FROM losses)", [], |row| row.get(0))
            .map_err(local)?;
        let inner = Inner { connection, marks: HashMap::new(), losses: HashMap::new(), has_losses };
        Ok(Self { inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock was held leaves SQLite's own state whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write<P: rusqlite::Params>(&self, sql: &str, values: P) -> Result<usize> {
        self.lock().write(sql, values)
    }

    fn read<T, P: rusqlite::Params>(
        &self,
        sql: &str,
        values: P,
        row: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        let inner = self.lock();
        let mut statement = inner.connection.prepare_cached(sql).map_err(local)?;
        statement.query_row(values, row).optional().map_err(local)
    }

    fn read_all<T, P: rusqlite::Params>(
        &self,
        sql: &str,
        values: P,
        row: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let inner = self.lock();
        let mut statement = inner.connection.prepare_cached(sql).map_err(local)?;
        let rows = statement.query_map(values, row).map_err(local)?;
        rows.collect::<rusqlite::Result<_>>().map_err(local)
    }

    /// Writes what waits: it survives the death of this process.
    pub fn settle(&self) -> Result<()> {
        let mut inner = self.lock();
        if inner.marks.is_empty() && inner.losses.is_empty() { Ok(()) } else { inner.flush(|_| Ok(())) }
    }

    /// Writes what waits and waits for the disk: it survives the death of this machine.
    pub fn settle_on_disk(&self) -> Result<()> {
        let mut inner = self.lock();
        inner.flush(|_| Ok(()))?;
        // A checkpoint syncs the log before it copies it; a busy reader only delays the copying.
        inner.connection.query_row("PRAGMA wal_checkpoint(FULL)", [], |_| Ok(())).map_err(local)
    }

    // ---- marks

    pub fn mark_of(&self, key: &str) -> Result<Option<Mark>> {
        if let Some(waiting) = self.lock().marks.get(key) {
            return Ok(waiting.clone());
        }
        self.read(
            "SELECT done, source_etag, source_size, source_modified, target_etag, target_size, target_modified
             FROM marks WHERE key = ?1",
            [key],
            |row| {
                Ok(Mark {
                    done: row.get(0)?,
                    source: Seen { etag: row.get(1)?, size: some_number(row, 2)?, modified: row.get(3)? },
                    target: Seen { etag: row.get(4)?, size: some_number(row, 5)?, modified: row.get(6)? },
                })
            },
        )
    }

    /// These keys exist on the side we copy from and are about to be written: from now on they are ours to delete.
    pub fn intend<'k>(&self, keys: impl IntoIterator<Item = &'k str>) -> Result<()> {
        self.lock().flush(|connection| {
            let mut statement =
                connection.prepare_cached("INSERT OR IGNORE INTO marks (key, done) VALUES (?1, 0)")?;
            for key in keys {
                statement.execute([key])?;
            }
            Ok(())
        })
    }

    pub fn mark(&self, key: &str, mark: Mark) -> Result<()> {
        self.lock().hold(key, Some(mark))
    }

    pub fn forget(&self, key: &str) -> Result<()> {
        self.lock().hold(key, None)?;
        self.no_loss(key)
    }

    // ---- unfinished uploads

    pub fn upload(&self, side: Side, key: &str) -> Result<Option<OpenUpload>> {
        self.read(
            "SELECT id, etag, modified, size, part_size FROM uploads WHERE side = ?1 AND key = ?2",
            params![side_name(side), key],
            |row| {
                Ok(OpenUpload {
                    id: row.get(0)?,
                    etag: row.get(1)?,
                    modified: row.get(2)?,
                    size: number(row, 3)?,
                    part_size: number(row, 4)?,
                })
            },
        )
    }

    pub fn uploads(&self, side: Side) -> Result<Vec<(String, String)>> {
        self.read_all("SELECT key, id FROM uploads WHERE side = ?1", [side_name(side)], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
    }

    pub fn upload_begun(&self, side: Side, key: &str, upload: &OpenUpload) -> Result<()> {
        self.write("DELETE FROM parts WHERE side = ?1 AND key = ?2", params![side_name(side), key])?;
        self.write(
            "INSERT OR REPLACE INTO uploads VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                side_name(side),
                key,
                upload.id,
                upload.etag,
                upload.modified,
                stored(upload.size),
                stored(upload.part_size)
            ],
        )?;
        Ok(())
    }

    pub fn part_uploaded(&self, side: Side, key: &str, part: &UploadedPart, digest: &Digest) -> Result<()> {
        self.write(
            "INSERT OR REPLACE INTO parts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                side_name(side),
                key,
                part.number,
                part.etag,
                stored(part.size),
                digest.crc64nvme.cast_signed(),
                digest.crc64xz.cast_signed(),
                digest.crc32c
            ],
        )?;
        Ok(())
    }

    pub fn parts(&self, side: Side, key: &str) -> Result<Vec<(UploadedPart, Digest)>> {
        self.read_all(
            "SELECT number, etag, size, crc64nvme, crc64xz, crc32c FROM parts WHERE side = ?1 AND key = ?2 ORDER BY number",
            params![side_name(side), key],
            |row| {
                let size = number(row, 2)?;
                Ok((
                    UploadedPart { number: row.get(0)?, etag: row.get(1)?, size },
                    Digest {
                        length: size,
                        crc64nvme: row.get::<_, i64>(3)?.cast_unsigned(),
                        crc64xz: row.get::<_, i64>(4)?.cast_unsigned(),
                        crc32c: row.get(5)?,
                    },
                ))
            },
        )
    }

    pub fn upload_ended(&self, side: Side, key: &str) -> Result<()> {
        self.write("DELETE FROM uploads WHERE side = ?1 AND key = ?2", params![side_name(side), key])?;
        self.write("DELETE FROM parts WHERE side = ?1 AND key = ?2", params![side_name(side), key])?;
        Ok(())
    }

    // ---- positions and passes

    pub fn applied(&self, flow: Flow) -> Result<Option<Applied>> {
        self.read("SELECT applied, current_at FROM positions WHERE flow = ?1", [flow_name(flow)], |row| {
            Ok(Applied { position: Position(row.get(0)?), current_at: row.get(1)? })
        })
    }

    /// Writes the position together with every mark before it.
    pub fn set_applied(&self, flow: Flow, position: &Position, current_at: i64) -> Result<()> {
        self.lock().flush(|connection| {
            connection
                .prepare_cached("INSERT OR REPLACE INTO positions VALUES (?1, ?2, ?3)")?
                .execute(params![flow_name(flow), position.0, current_at])?;
            Ok(())
        })
    }

    pub fn forget_applied(&self, flow: Flow) -> Result<()> {
        self.write("DELETE FROM positions WHERE flow = ?1", [flow_name(flow)])?;
        self.settle_on_disk()
    }

    /// The number of the newest listing pass that was begun; 0 before the first.
    pub fn newest_pass(&self, flow: Flow) -> Result<u64> {
        let newest =
            self.read("SELECT max(number) FROM passes WHERE flow = ?1", [flow_name(flow)], |row| {
                some_number(row, 0)
            })?;
        Ok(newest.flatten().unwrap_or(0))
    }

    /// Begins the next pass; must be called before its first listing.
    pub fn begin_pass(&self, flow: Flow) -> Result<u64> {
        let mut begun = 0;
        self.lock().flush(|connection| {
            let newest = connection.query_row(
                "SELECT max(number) FROM passes WHERE flow = ?1",
                [flow_name(flow)],
                |row| some_number(row, 0),
            )?;
            begun = newest.unwrap_or(0) + 1;
            connection.execute(
                "INSERT INTO passes VALUES (?1, ?2, ?3)",
                params![flow_name(flow), stored(begun), wall_millis()],
            )?;
            // Enough history for every position that can still be asked about.
            connection.execute(
                "DELETE FROM passes WHERE flow = ?1 AND number < ?2",
                params![flow_name(flow), stored(begun.saturating_sub(100_000))],
            )?;
            Ok(())
        })?;
        Ok(begun)
    }

    /// When (wall clock) a pass began.
    pub fn pass_begun_at(&self, flow: Flow, number: u64) -> Result<Option<i64>> {
        self.read(
            "SELECT begun_at FROM passes WHERE flow = ?1 AND number = ?2",
            params![flow_name(flow), stored(number)],
            |row| row.get(0),
        )
    }

    /// A follower of this flow is alive; to be said at least every second.
    pub fn beat(&self, flow: Flow) -> Result<()> {
        self.write("INSERT OR REPLACE INTO beats VALUES (?1, ?2)", params![flow_name(flow), wall_millis()])?;
        Ok(())
    }

    pub fn end_beat(&self, flow: Flow) -> Result<()> {
        self.write("DELETE FROM beats WHERE flow = ?1", [flow_name(flow)])?;
        Ok(())
    }

    /// Is a follower of this flow alive, in whatever process?
    pub fn is_followed(&self, flow: Flow) -> Result<bool> {
        let at: Option<i64> =
            self.read("SELECT at FROM beats WHERE flow = ?1", [flow_name(flow)], |row| row.get(0))?;
        Ok(at.is_some_and(|at| (wall_millis() - at).abs() < BEAT_LIMIT_MILLIS))
    }

    // ---- what was on the side written to before us

    /// These keys were there before the migration, and are not on the other side.
    pub fn strangers<'k>(&self, keys: impl IntoIterator<Item = &'k str>) -> Result<()> {
        self.lock().flush(|connection| {
            let mut statement = connection.prepare_cached("INSERT OR IGNORE INTO strangers VALUES (?1)")?;
            for key in keys {
                statement.execute([key])?;
            }
            Ok(())
        })
    }

    pub fn is_stranger(&self, key: &str) -> Result<bool> {
        Ok(self.read("SELECT 1 FROM strangers WHERE key = ?1", [key], |_| Ok(()))?.is_some())
    }

    // ---- losses and notices

    /// What could not be carried of `key`; replaces what was said of it before.
    pub fn loss(&self, key: &str, id: &str, text: &str, remedy: Option<&str>) -> Result<()> {
        let loss = Loss { id: id.into(), text: text.into(), remedy: remedy.map(Into::into) };
        let mut inner = self.lock();
        inner.has_losses = true;
        inner.losses.insert(key.into(), Some(loss));
        if inner.losses.len() >= MARKS_HELD { inner.flush(|_| Ok(())) } else { Ok(()) }
    }

    /// Nothing of `key` is lost any more.
    pub fn no_loss(&self, key: &str) -> Result<()> {
        let mut inner = self.lock();
        if inner.has_losses {
            inner.losses.insert(key.into(), None);
        }
        Ok(())
    }

    /// The first losses and a last line with the count of the rest.
    pub fn losses(&self, most: usize) -> Result<Vec<Finding>> {
        self.settle()?;
        let total: u64 = self.read("SELECT count(*) FROM losses", [], |row| number(row, 0))?.unwrap_or(0);
        let mut losses = self.read_all(
            "SELECT id, text, remedy FROM losses ORDER BY id = 'attributes-lost', key LIMIT ?1",
            [stored(most as u64)],
            |row| {
                Ok(Finding {
                    id: row.get(0)?,
                    severity: Severity::Warning,
                    side: None,
                    text: row.get(1)?,
                    remedy: row.get(2)?,
                })
            },
        )?;
        let rest = total.saturating_sub(losses.len() as u64);
        if rest > 0 {
            losses.push(Finding {
                id: "more-losses".into(),
                severity: Severity::Warning,
                side: None,
                text: format!("{rest} more keys lost something on the way"),
                remedy: None,
            });
        }
        Ok(losses)
    }

    pub fn notice(&self, finding: &Finding) -> Result<()> {
        let json = serde_json::to_string(finding)
            .map_err(|e| Error::permanent(ErrorKind::Other, format!("cannot write a finding: {e}")))?;
        // Bounded: the thousandth notice says nothing that the first did not.
        self.write(
            "INSERT OR REPLACE INTO notices SELECT ?1, ?2 WHERE (SELECT count(*) FROM notices) < 1000",
            params![finding.text, json],
        )?;
        Ok(())
    }

    pub fn notices(&self) -> Result<Vec<Finding>> {
        let texts =
            self.read_all("SELECT finding FROM notices ORDER BY text", [], |row| row.get::<_, String>(0))?;
        texts
            .iter()
            .map(|text| {
                serde_json::from_str(text)
                    .map_err(|e| Error::permanent(ErrorKind::Corrupt, format!("state database: notice: {e}")))
            })
            .collect()
    }

    // ---- facts

    pub fn fact(&self, name: &str) -> Result<Option<String>> {
        self.read("SELECT value FROM facts WHERE name = ?1", [name], |row| row.get(0))
    }

    /// Remembered before this returns, whatever happens to the machine.
    pub fn set_fact(&self, name: &str, value: &str) -> Result<()> {
        self.write("INSERT OR REPLACE INTO facts VALUES (?1, ?2)", [name, value])?;
        self.settle_on_disk()
    }

    pub fn forget_fact(&self, name: &str) -> Result<()> {
        self.write("DELETE FROM facts WHERE name = ?1", [name])?;
        self.settle_on_disk()
    }
}

impl Inner {
    /// One statement of its own, committed when this returns.
    fn write<P: rusqlite::Params>(&mut self, sql: &str, values: P) -> Result<usize> {
        self.connection.prepare_cached(sql).and_then(|mut statement| statement.execute(values)).map_err(local)
    }

    fn hold(&mut self, key: &str, mark: Option<Mark>) -> Result<()> {
        self.marks.insert(key.into(), mark);
        if self.marks.len() >= MARKS_HELD { self.flush(|_| Ok(())) } else { Ok(()) }
    }

    /// Writes what waits and whatever `more` writes, in one transaction; on failure all of it is still waiting.
    fn flush(&mut self, more: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> Result<()> {
        let transaction = self
            .connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(local)?;
        write_marks(&transaction, &self.marks).map_err(local)?;
        write_losses(&transaction, &self.losses).map_err(local)?;
        more(&transaction).map_err(local)?;
        transaction.commit().map_err(local)?;
        self.marks.clear();
        self.losses.clear();
        Ok(())
    }
}

fn write_marks(connection: &Connection, marks: &HashMap<String, Option<Mark>>) -> rusqlite::Result<()> {
    if marks.is_empty() {
        return Ok(());
    }
    let mut put = connection.prepare_cached(
        "INSERT INTO marks VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (key) DO UPDATE SET
           done = ?2, source_etag = ?3, source_size = ?4, source_modified = ?5,
           target_etag = ?6, target_size = ?7, target_modified = ?8",
    )?;
    let mut forget = connection.prepare_cached("DELETE FROM marks WHERE key = ?1")?;
    for (key, mark) in marks {
        match mark {
            None => forget.execute([key])?,
            Some(Mark { done, source, target }) => put.execute(params![
                key,
                done,
                source.etag,
                source.size.map(stored),
                source.modified,
                target.etag,
                target.size.map(stored),
                target.modified
            ])?,
        };
    }
    Ok(())
}

fn write_losses(connection: &Connection, losses: &HashMap<String, Option<Loss>>) -> rusqlite::Result<()> {
    for (key, loss) in losses {
        match loss {
            None => connection.prepare_cached("DELETE FROM losses WHERE key = ?1")?.execute([key])?,
            Some(Loss { id, text, remedy }) => connection
                .prepare_cached("INSERT OR REPLACE INTO losses VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![key, id, text, remedy])?,
        };
    }
    Ok(())
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.marks.is_empty() && self.losses.is_empty() {
            return;
        }
        if let Err(error) = self.flush(|_| Ok(())) {
            tracing::warn!(%error, "the last marks were not written; those objects are compared again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(size: u64, etag: Option<&str>, modified: Option<i64>) -> Entry {
        Entry { key: "k".into(), size, etag: etag.map(Into::into), modified }
    }

    #[test]
    fn a_seen_version_is_told_from_another() {
        let seen = Seen { etag: Some("a".into()), size: Some(3), modified: Some(5_000) };
        assert_eq!(seen.is(&entry(3, Some("a"), Some(5_123))), Some(true));
        assert_eq!(seen.is(&entry(3, Some("b"), Some(5_000))), Some(false));
        assert_eq!(seen.is(&entry(3, Some("a"), Some(7_000))), Some(false), "metadata was replaced");
        assert_eq!(seen.is(&entry(4, Some("a"), Some(5_000))), Some(false));
        let bare = Seen { etag: None, size: Some(3), modified: None };
        assert_eq!(bare.is(&entry(3, Some("a"), Some(1))), None);
    }

    #[test]
    fn marks_survive_and_intents_are_not_done() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.sqlite");
        let mark = Mark::new(
            Flow::Reverse,
            Seen { etag: Some("t".into()), size: Some(u64::from(u32::MAX) * 9), modified: None },
            Seen { etag: Some("s".into()), size: Some(1), modified: Some(-4) },
        );
        {
            let state = State::open(&path).unwrap();
            state.intend(["a", "b\0c"]).unwrap();
            state.mark("a", mark.clone()).unwrap();
        }
        let state = State::open(&path).unwrap();
        assert_eq!(state.mark_of("a").unwrap(), Some(mark.clone()));
        assert_eq!(mark.of(Side::Target).etag.as_deref(), Some("t"));
        assert!(!state.mark_of("b\0c").unwrap().unwrap().done);
        assert_eq!(state.mark_of("c").unwrap(), None);
        state.intend(["a"]).unwrap();
        assert!(state.mark_of("a").unwrap().unwrap().done, "an intent does not undo a mark");
    }

    #[test]
    fn losses_are_bounded_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(&folder.path().join("s")).unwrap();
        for n in 0..10 {
            state.loss(&format!("k{n}"), "attributes-lost", "tags", None).unwrap();
        }
        let losses = state.losses(3).unwrap();
        assert_eq!(losses.len(), 4);
        assert!(losses[3].text.starts_with("7 more"));
        state.no_loss("k0").unwrap();
        assert_eq!(state.losses(100).unwrap().len(), 9);
    }

    #[test]
    fn another_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(State::open(&path).unwrap());
        Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
        assert_eq!(State::open(&path).unwrap_err().kind, ErrorKind::Unsupported);
    }

    #[test]
    fn passes_count_up_across_openings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let state = State::open(&path).unwrap();
        assert_eq!(state.newest_pass(Flow::Forward).unwrap(), 0);
        assert_eq!(state.begin_pass(Flow::Forward).unwrap(), 1);
        assert_eq!(state.begin_pass(Flow::Forward).unwrap(), 2);
        assert_eq!(state.begin_pass(Flow::Reverse).unwrap(), 1);
        drop(state);
        assert_eq!(State::open(&path).unwrap().newest_pass(Flow::Forward).unwrap(), 2);
    }
}
