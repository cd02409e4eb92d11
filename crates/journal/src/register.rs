//! The register: who owns each epoch. One compare-and-set row per epoch in a small file of its own, written by the engine
//! or the guard, whoever is first. This is the only point of no return of a switch; nothing else is kept here.

use crate::database;
use crate::{Error, Now, Result, journal::DECISION_FILE};
use rehome_part::{Epoch, Side, Token};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An epoch's owner as it stands in the register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub epoch: Epoch,
    pub owner: Side,
    /// The engine that decided.
    pub token: Token,
}

/// `decision.db` of one run. Safe to open in several processes at once.
#[derive(Debug)]
pub struct Register {
    connection: Mutex<Connection>,
}

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS decision (
    epoch INTEGER PRIMARY KEY,
    value TEXT CHECK (value IN ('source', 'target')),
    token INTEGER NOT NULL,
    at_boot TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS highest (id INTEGER PRIMARY KEY CHECK (id = 1), token INTEGER NOT NULL) STRICT;
INSERT INTO highest (id, token) VALUES (1, 0) ON CONFLICT DO NOTHING;
";

impl Register {
    /// Opens the register in a run's folder; makes it when it is not there.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(DECISION_FILE);
        database::make_private(&path)?;
        let mut connection = database::connect(&path)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(TABLES)?;
        transaction.commit()?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // a panic in a reader leaves no half-done transaction: SQLite rolled it back
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the undecided row of `epoch`. Again: nothing changes.
    pub fn propose(&self, epoch: Epoch, token: Token) -> Result<()> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        raise(&transaction, token)?;
        insert_undecided(&transaction, epoch, token)?;
        transaction.commit()?;
        Ok(())
    }

    /// From now on every token lower than this one is refused.
    pub fn raise(&self, token: Token) -> Result<()> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        raise(&transaction, token)?;
        transaction.commit()?;
        Ok(())
    }

    /// Decides `epoch` for `owner` if nobody decided it before; answers who owns it, by reading it back.
    pub fn decide(&self, epoch: Epoch, owner: Side, token: Token) -> Result<Decision> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        raise(&transaction, token)?;
        let at = Now::read();
        transaction.execute(
            "UPDATE decision SET value = ?1, token = ?2, at_boot = ?3 WHERE epoch = ?4 AND value IS NULL",
            params![
                owner.to_string(),
                token.0 as i64,
                format!("{} {}", at.boot_id, at.boot_ms),
                epoch.0 as i64
            ],
        )?;
        transaction.commit()?;
        read(&connection, epoch)?.ok_or(Error::NotProposed(epoch))
    }

    /// The decision of `epoch`; `None` while it is undecided or unknown.
    pub fn decision(&self, epoch: Epoch) -> Result<Option<Decision>> {
        read(&self.lock(), epoch)
    }

    /// The newest epoch that is decided.
    pub fn newest(&self) -> Result<Option<Decision>> {
        let connection = self.lock();
        let epoch: Option<i64> = connection
            .query_row("SELECT max(epoch) FROM decision WHERE value IS NOT NULL", [], |row| row.get(0))
            .optional()?
            .flatten();
        epoch.map_or(Ok(None), |epoch| read(&connection, Epoch(epoch.unsigned_abs())))
    }
}

fn raise(transaction: &Transaction<'_>, token: Token) -> Result<()> {
    let newest: i64 =
        transaction.query_row("SELECT token FROM highest WHERE id = 1", [], |row| row.get(0))?;
    let newest = Token(newest.unsigned_abs());
    if token < newest {
        return Err(Error::StaleToken { ours: token, newest });
    }
    transaction.execute("UPDATE highest SET token = ?1 WHERE id = 1", [token.0 as i64])?;
    Ok(())
}

fn insert_undecided(transaction: &Transaction<'_>, epoch: Epoch, token: Token) -> Result<()> {
    transaction.execute(
        "INSERT INTO decision (epoch, value, token, at_boot) VALUES (?1, NULL, ?2, '') ON CONFLICT DO NOTHING",
        params![epoch.0 as i64, token.0 as i64],
    )?;
    Ok(())
}

fn read(connection: &Connection, epoch: Epoch) -> Result<Option<Decision>> {
    let row = connection
        .query_row(
            "SELECT value, token FROM decision WHERE epoch = ?1 AND value IS NOT NULL",
            [epoch.0 as i64],
            |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)),
        )
        .optional()?;
    Ok(row.map(|(value, token)| Decision {
        epoch,
        owner: if value == "target" { Side::Target } else { Side::Source },
        token: Token(token.unsigned_abs()),
    }))
}
