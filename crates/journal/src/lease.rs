//! Who is the engine of a run right now. A lease with a token; taken over only when it ended, and then with a higher one.

use crate::{Error, Now, Result};
use rehome_part::Token;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The engine's lease as it stands in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Who holds it, for people: `engine pid 123`.
    pub holder: String,
    pub token: Token,
    pub boot_id: String,
    /// End of the lease on the boot clock of `boot_id`.
    pub expires_boot_ms: u64,
}

impl Lease {
    /// Does its holder still count as alive? A lease of another boot never does.
    pub fn is_alive(&self, now: &Now) -> bool {
        self.boot_id == now.boot_id && now.boot_ms < self.expires_boot_ms
    }
}

/// The guard's last sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardBeat {
    /// `guard pid 124`.
    pub holder: String,
    pub boot_id: String,
    pub beat_boot_ms: u64,
}

impl GuardBeat {
    pub fn is_alive(&self, now: &Now, silent: Duration) -> bool {
        self.boot_id == now.boot_id && now.boot_ms < self.beat_boot_ms + silent.as_millis() as u64
    }
}

pub(crate) fn read(connection: &Connection) -> Result<Option<Lease>> {
    let row = connection
        .query_row("SELECT holder, token, boot_id, expires_boot_ms FROM lease WHERE id = 1", [], |row| {
            Ok(Lease {
                holder: row.get(0)?,
                token: Token(row.get::<_, i64>(1)?.unsigned_abs()),
                boot_id: row.get(2)?,
                expires_boot_ms: row.get::<_, i64>(3)?.unsigned_abs(),
            })
        })
        .optional()?;
    Ok(row)
}

fn write(connection: &Connection, lease: &Lease) -> Result<()> {
    connection.execute(
        "INSERT INTO lease (id, holder, token, boot_id, expires_boot_ms) VALUES (1, ?1, ?2, ?3, ?4)
         ON CONFLICT (id) DO UPDATE SET holder = ?1, token = ?2, boot_id = ?3, expires_boot_ms = ?4",
        params![lease.holder, lease.token.0 as i64, lease.boot_id, lease.expires_boot_ms as i64],
    )?;
    Ok(())
}

/// A lease that nobody holds, so that the first real one gets a token above `floor`.
pub(crate) fn begin(connection: &Connection, floor: Token) -> Result<()> {
    let nobody = Lease { holder: String::new(), token: floor, boot_id: String::new(), expires_boot_ms: 0 };
    write(connection, &nobody)
}

fn end_of(now: &Now, length: Duration) -> u64 {
    now.boot_ms + length.as_millis() as u64
}

/// Takes the lease if nobody alive has it; the new token is higher than every one before.
pub(crate) fn acquire(connection: &Connection, holder: &str, now: &Now, length: Duration) -> Result<Lease> {
    let before = read(connection)?;
    if let Some(lease) = before.as_ref().filter(|lease| lease.is_alive(now)) {
        return Err(Error::Held(lease.clone()));
    }
    let token = Token(before.map_or(0, |lease| lease.token.0) + 1);
    let lease = Lease {
        holder: holder.to_owned(),
        token,
        boot_id: now.boot_id.clone(),
        expires_boot_ms: end_of(now, length),
    };
    write(connection, &lease)?;
    Ok(lease)
}

/// Fails with [`Error::LeaseLost`] unless `token` is the newest.
pub(crate) fn check(connection: &Connection, token: Token) -> Result<Lease> {
    match read(connection)? {
        Some(lease) if lease.token == token => Ok(lease),
        Some(lease) => Err(Error::LeaseLost { ours: token, newest: lease.token }),
        None => Err(Error::LeaseLost { ours: token, newest: Token(0) }),
    }
}

pub(crate) fn renew(connection: &Connection, token: Token, now: &Now, length: Duration) -> Result<Lease> {
    let mut lease = check(connection, token)?;
    lease.boot_id.clone_from(&now.boot_id);
    lease.expires_boot_ms = end_of(now, length);
    write(connection, &lease)?;
    Ok(lease)
}

/// Ends the lease at once, so that the next engine need not wait.
pub(crate) fn release(connection: &Connection, token: Token) -> Result<()> {
    let mut lease = check(connection, token)?;
    lease.expires_boot_ms = 0;
    write(connection, &lease)
}

pub(crate) fn beat(connection: &Connection, holder: &str, now: &Now) -> Result<()> {
    connection.execute(
        "INSERT INTO guard (id, holder, boot_id, beat_boot_ms) VALUES (1, ?1, ?2, ?3)
         ON CONFLICT (id) DO UPDATE SET holder = ?1, boot_id = ?2, beat_boot_ms = ?3",
        params![holder, now.boot_id, now.boot_ms as i64],
    )?;
    Ok(())
}

pub(crate) fn guard(connection: &Connection) -> Result<Option<GuardBeat>> {
    let row = connection
        .query_row("SELECT holder, boot_id, beat_boot_ms FROM guard WHERE id = 1", [], |row| {
            Ok(GuardBeat {
                holder: row.get(0)?,
                boot_id: row.get(1)?,
                beat_boot_ms: row.get::<_, i64>(2)?.unsigned_abs(),
            })
        })
        .optional()?;
    Ok(row)
}
