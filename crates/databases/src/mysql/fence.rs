//! Closing a server to every writer but the migration, and opening it again as it was. What was there is on disk before it is changed.
//!
//! The server as a whole is closed: it knows no switch for one schema alone. Nothing of it goes into the binary log.

use super::connect::{Session, Sessions, connect, refusal};
use super::{own, quote};
use crate::end::{End, FenceMeans};
use crate::facts::Facts;
use mysql_async::prelude::Queryable;
use rehome_part::{Error, ErrorKind, Fence, Result, Side};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// How long a statement that is under way may hold the fence up before it is ended.
const GRACE: Duration = Duration::from_millis(100);
const DEADLINE: Duration = Duration::from_secs(15);
const BETWEEN_LOOKS: Duration = Duration::from_millis(3);
/// They belong to the server itself or to who runs it; they are locked where they can be, or not ours to lock.
const SYSTEM: [&str; 5] = ["mariadb.sys", "mysql.sys", "mysql.session", "mysql.infoschema", "rdsadmin"];

/// What was there before the fence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Before {
    read_only: bool,
    scheduler: String,
    /// Accounts that were not locked and are now: user and host.
    locked: Vec<(String, String)>,
}

fn fact(side: Side) -> String {
    format!("fence:{side}")
}

/// One side, and what closing it takes.
pub(super) struct Gate<'a> {
    pub sessions: &'a Sessions,
    pub end: &'a End,
    pub means: FenceMeans,
    pub facts: &'a Facts,
}

impl Gate<'_> {
    fn side(&self) -> Side {
        self.sessions.side
    }

    fn is_ours(&self, user: &str) -> bool {
        user == self.end.address.user || user == own::REPLICA
    }

    pub async fn close(&self) -> Result<()> {
        if self.means == FenceMeans::None {
            return Ok(());
        }
        let mut session = self.sessions.take().await?;
        session.off_the_record().await?;
        let before = match self.remembered()? {
            Some(before) => before,
            None => {
                let before = self.look(&mut session).await?;
                let text = serde_json::to_string(&before)
                    .map_err(|error| Error::permanent(ErrorKind::Other, error.to_string()))?;
                self.facts.set(&fact(self.side()), &text)?;
                before
            }
        };
        let doing = "close the server";
        if before.scheduler == "ON" {
            session.say(doing, "SET GLOBAL event_scheduler = OFF").await?;
        }
        self.lock(&mut session, &before.locked, "LOCK").await?;
        self.read_only(&mut session).await?;
        self.end_sessions(&mut session).await
    }

    fn remembered(&self) -> Result<Option<Before>> {
        let Some(text) = self.facts.get(&fact(self.side())) else { return Ok(None) };
        let before = serde_json::from_str(&text);
        before.map(Some).map_err(|error| Error::permanent(ErrorKind::Corrupt, error.to_string()))
    }

    async fn look(&self, session: &mut Session) -> Result<Before> {
        let statement = "SELECT @@GLOBAL.read_only, @@GLOBAL.event_scheduler";
        let (read_only, scheduler): (bool, String) =
            session.row("read the server's state", statement, ()).await?;
        let mut locked = self.unlocked(session).await?;
        if self.means == FenceMeans::Writes {
            let bypassing = bypassing(session).await?;
            locked.retain(|account| bypassing.contains(account));
        }
        Ok(Before { read_only, scheduler, locked })
    }

    /// Accounts that could log in, but for our own and the server's.
    async fn unlocked(&self, session: &mut Session) -> Result<Vec<(String, String)>> {
        let statement = "SELECT User, Host FROM mysql.global_priv
            WHERE COALESCE(JSON_VALUE(Priv, '$.is_role'), '0') NOT IN ('1', 'true')
              AND COALESCE(JSON_VALUE(Priv, '$.account_locked'), '0') NOT IN ('1', 'true') ORDER BY User, Host";
        let mut all: Vec<(String, String)> = session.rows("read the accounts", statement, ()).await?;
        all.retain(|(user, _)| !self.is_ours(user) && !SYSTEM.contains(&&**user));
        Ok(all)
    }

    async fn lock(&self, session: &mut Session, accounts: &[(String, String)], word: &str) -> Result<()> {
        for (user, host) in accounts {
            // One that is gone meanwhile needs no lock.
            let statement = format!("ALTER USER IF EXISTS {} ACCOUNT {word}", quote::account(user, host));
            session.say("lock accounts", &statement).await?;
        }
        Ok(())
    }

    /// Waits for statements that are under way, but not for long: whoever holds it up is ended.
    async fn read_only(&self, session: &mut Session) -> Result<()> {
        let (set,): (bool,) = session.row("read read_only", "SELECT @@GLOBAL.read_only", ()).await?;
        if set {
            return Ok(());
        }
        let until = Instant::now() + DEADLINE;
        let setting = session.say("set read_only", "SET GLOBAL read_only = ON");
        tokio::pin!(setting);
        loop {
            tokio::select! {
                done = &mut setting => return done,
                () = tokio::time::sleep(GRACE) => {}
            }
            if Instant::now() > until {
                let text = "statements under way cannot be ended, so the server could not be closed";
                return Err(Error::temporary(ErrorKind::Deadline, text).on(self.side()));
            }
            let mut other = self.sessions.take().await?;
            for id in self.writing(&mut other).await? {
                kill(&mut other, id).await?;
            }
        }
    }

    /// Sessions with an open transaction that has written, or waits in a statement.
    async fn writing(&self, session: &mut Session) -> Result<Vec<u64>> {
        let statement = "SELECT p.ID, p.USER FROM information_schema.INNODB_TRX t
            JOIN information_schema.PROCESSLIST p ON p.ID = t.trx_mysql_thread_id
            WHERE (t.trx_rows_modified > 0 OR t.trx_rows_locked > 0) AND p.ID <> CONNECTION_ID()
              AND p.USER NOT IN ('system user', 'event_scheduler')";
        let found: Vec<(u64, String)> = session.rows("read open transactions", statement, ()).await?;
        Ok(found.into_iter().filter(|(_, user)| !self.is_ours(user)).map(|(id, _)| id).collect())
    }

    /// Sessions that the fence does not allow.
    async fn unwanted(&self, session: &mut Session) -> Result<Vec<u64>> {
        let mut ids = self.writing(session).await?;
        let statement = "SELECT ID, USER FROM information_schema.PROCESSLIST
            WHERE ID <> CONNECTION_ID() AND COMMAND NOT IN ('Daemon', 'Slave_IO', 'Slave_SQL', 'Slave_worker', 'Killed')
              AND COMMAND NOT LIKE 'Binlog Dump%' AND USER NOT IN ('system user', 'event_scheduler')";
        let others: Vec<(u64, String)> = session.rows("read the sessions", statement, ()).await?;
        let others = others.into_iter().filter(|(_, user)| !self.is_ours(user));
        if self.means == FenceMeans::Logins {
            ids.extend(others.map(|(id, _)| id));
        } else {
            let bypassing = bypassing(session).await?;
            let others = others.filter(|(_, user)| bypassing.iter().any(|(other, _)| other == user));
            ids.extend(others.map(|(id, _)| id));
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// Ends them until none is left.
    async fn end_sessions(&self, session: &mut Session) -> Result<()> {
        let until = Instant::now() + DEADLINE;
        loop {
            let unwanted = self.unwanted(session).await?;
            if unwanted.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                let text = format!("{} session(s) do not end", unwanted.len());
                return Err(Error::temporary(ErrorKind::Deadline, text).on(self.side()));
            }
            for id in unwanted {
                kill(session, id).await?;
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    pub async fn open(&self) -> Result<()> {
        let Some(before) = self.remembered()? else { return Ok(()) };
        let mut session = self.sessions.take().await?;
        session.off_the_record().await?;
        if !before.read_only {
            session.say("open the server", "SET GLOBAL read_only = OFF").await?;
        }
        self.lock(&mut session, &before.locked, "UNLOCK").await?;
        if before.scheduler == "ON" {
            session.say("open the server", "SET GLOBAL event_scheduler = ON").await?;
        }
        self.facts.forget(&fact(self.side()))
    }

    /// Tries a write that changes nothing, as each of the application's logins in a new session.
    pub async fn probe(&self, schema: &str) -> Result<Fence> {
        if self.means == FenceMeans::None {
            return Ok(Fence::None);
        }
        let mut session = self.sessions.take().await?;
        let statement = "SELECT TABLE_NAME FROM information_schema.TABLES
            WHERE TABLE_SCHEMA = ? AND TABLE_TYPE = 'BASE TABLE' ORDER BY TABLE_NAME LIMIT 1";
        let table: Vec<String> = session.rows("find a table", statement, (schema,)).await?;
        let (read_only,): (bool,) = session.row("read read_only", "SELECT @@GLOBAL.read_only", ()).await?;
        let closed = if read_only { Fence::Closed } else { Fence::Open };
        let Some(table) = table.first() else { return Ok(closed) };
        let write = format!("DELETE FROM {}.{} WHERE FALSE", quote::name(schema), quote::name(table));
        let mut said = closed;
        for login in &self.end.applications {
            let address = self.end.address_of(login);
            match self.try_as(&address, login.password.as_deref(), &write).await? {
                Fence::ProvedClosed if said != Fence::Open => said = Fence::ProvedClosed,
                Fence::Open => return Ok(Fence::Open),
                _ => {}
            }
        }
        Ok(said)
    }

    async fn try_as(&self, address: &crate::Address, password: Option<&str>, write: &str) -> Result<Fence> {
        let mut session = match connect(address, password, self.side()).await {
            Ok(session) => session,
            Err(error) if error.kind == ErrorKind::Credentials => {
                let is_shut_out = self.means == FenceMeans::Logins && self.remembered()?.is_some();
                return if is_shut_out { Ok(Fence::ProvedClosed) } else { Err(error) };
            }
            Err(error) => return Err(error),
        };
        match session.conn.query_drop(write).await {
            Ok(()) => Ok(Fence::Open),
            // The server runs read-only.
            Err(error) if matches!(refusal(&error), Some(1290 | 1836)) => Ok(Fence::ProvedClosed),
            // It may not write there at all: that says nothing of the fence.
            Err(error) if matches!(refusal(&error), Some(1142 | 1044)) => Ok(Fence::Closed),
            Err(error) => Err(super::connect::error_of("try a write", &error).on(self.side())),
        }
    }
}

async fn kill(session: &mut Session, id: u64) -> Result<()> {
    match session.conn.query_drop(format!("KILL CONNECTION {id}")).await {
        Ok(()) => Ok(()),
        // It has ended by itself.
        Err(error) if refusal(&error) == Some(1094) => Ok(()),
        Err(error) => Err(super::connect::error_of("end a session", &error).on(session.side())),
    }
}

/// Accounts whose writes pass `read_only`, or who can take it off.
async fn bypassing(session: &mut Session) -> Result<Vec<(String, String)>> {
    let statement = "SELECT DISTINCT GRANTEE FROM information_schema.USER_PRIVILEGES
        WHERE PRIVILEGE_TYPE IN ('SUPER', 'READ_ONLY ADMIN', 'READ ONLY ADMIN', 'CONNECTION ADMIN')";
    let grantees: Vec<String> = session.rows("read privileges", statement, ()).await?;
    let account = |grantee: &String| {
        let (user, host) = grantee.rsplit_once("'@'")?;
        Some((user.trim_start_matches('\'').to_owned(), host.trim_end_matches('\'').to_owned()))
    };
    Ok(grantees.iter().filter_map(account).collect())
}
