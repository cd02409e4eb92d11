//! The replication of one side from the other, as MariaDB runs it: a connection named `rehome` on the side that receives.

use super::connect::Session;
use super::{own, quote};
use crate::address::{Address, Tls};
use rehome_part::{Error, ErrorKind, Position};

const NAME: &str = "rehome";

/// How it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub host: String,
    pub port: String,
    /// `Yes`, `Connecting` or `Preparing`, `No`.
    pub receives: String,
    pub applies: bool,
    /// Numbers of the errors that they ended with, or tried again after; 0: none.
    pub receive_error: u32,
    pub apply_error: u32,
}

impl Status {
    /// What no waiting mends.
    pub fn is_lost(&self) -> Option<Error> {
        // The master's log no longer holds what is asked for, or holds something else.
        if self.receives == "No" && self.receive_error == 1236 {
            let text = "the other side's binary log no longer holds what is still to come (1236)";
            return Some(
                Error::permanent(ErrorKind::Corrupt, text).hint("copy anew: rehome cancel, then apply"),
            );
        }
        // Lock waits and deadlocks are tried again by the server itself.
        if !self.applies && !matches!(self.apply_error, 0 | 1205 | 1213 | 1158..=1161 | 1927) {
            let text = format!("a change could not be applied (error {})", self.apply_error);
            let hint = "see SHOW ALL SLAVES STATUS there; mend the row it names, or copy anew";
            return Some(Error::permanent(ErrorKind::Corrupt, text).hint(hint));
        }
        None
    }

    pub fn is_well(&self) -> bool {
        self.receives == "Yes" && self.applies
    }
}

/// All connections of this server: ours, and the names of others.
pub(super) async fn status(session: &mut Session) -> Result<(Option<Status>, Vec<String>), Error> {
    let rows = session.shown("read the state of replication", "SHOW ALL SLAVES STATUS").await?;
    let (mut ours, mut others) = (None, Vec::new());
    for row in rows {
        let text = |name: &str| row.get::<Option<String>, _>(name).flatten().unwrap_or_default();
        let number = |name: &str| text(name).parse().unwrap_or_default();
        if text("Connection_name") != NAME {
            others.push(text("Connection_name"));
            continue;
        }
        ours = Some(Status {
            host: text("Master_Host"),
            port: text("Master_Port"),
            receives: text("Slave_IO_Running"),
            applies: text("Slave_SQL_Running") == "Yes",
            receive_error: number("Last_IO_Errno"),
            apply_error: number("Last_SQL_Errno"),
        });
    }
    Ok((ours, others))
}

/// Where the receiving side has come to.
pub(super) async fn applied(session: &mut Session) -> Result<Position, Error> {
    let (position,): (String,) =
        session.row("read the applied position", "SELECT @@GLOBAL.gtid_slave_pos", ()).await?;
    Ok(Position(position))
}

/// The newest position of a side's own log.
pub(super) async fn head(session: &mut Session) -> Result<Position, Error> {
    let (position,): (String,) =
        session.row("read the position of the binary log", "SELECT @@GLOBAL.gtid_binlog_pos", ()).await?;
    Ok(Position(position))
}

/// Sets it up, stopped, at a position.
pub(super) async fn install(
    session: &mut Session,
    from: &Address,
    password: &str,
    start: &Position,
) -> Result<(), Error> {
    remove(session).await?;
    let doing = "set up replication";
    session.say(doing, &format!("SET GLOBAL gtid_slave_pos = {}", quote::text(&start.0))).await?;
    let mut statement = format!(
        "CHANGE MASTER '{NAME}' TO MASTER_HOST = {}, MASTER_PORT = {}, MASTER_USER = {}, MASTER_PASSWORD = {}, \
         MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1, MASTER_HEARTBEAT_PERIOD = 2",
        quote::text(&from.host),
        from.port,
        quote::text(own::REPLICA),
        quote::text(password),
    );
    if let Tls::Verified { authorities } = &from.tls {
        statement.push_str(", MASTER_SSL = 1, MASTER_SSL_VERIFY_SERVER_CERT = 1");
        if let Some(file) = authorities {
            statement.push_str(&format!(", MASTER_SSL_CA = {}", quote::text(&file.display().to_string())));
        }
    }
    // The words of a refusal may quote the statement, and with it the password.
    session.say(doing, &statement).await.map_err(|error| Error {
        text: "the other side's server does not take its replication settings".into(),
        hint: Some("grant the migration's user REPLICATION SLAVE ADMIN (SUPER on old servers)".into()),
        ..error
    })
}

/// Only rows of this schema and of our own are applied; what the server forgets when it is started again is said anew.
/// True where it had to be.
pub(super) async fn filter(session: &mut Session, schema: &str) -> Result<bool, Error> {
    let doing = "set replication filters";
    let databases = format!("{schema},{}", own::SCHEMA);
    let escaped = schema.replace('\\', "\\\\").replace('_', "\\_").replace('%', "\\%");
    let tables = format!("{escaped}.%,{}.%", own::SCHEMA);
    let (now, now_tables): (Option<String>, Option<String>) = session
        .row(
            doing,
            &format!("SELECT @@GLOBAL.{NAME}.replicate_do_db, @@GLOBAL.{NAME}.replicate_wild_do_table"),
            (),
        )
        .await?;
    if now.as_deref() == Some(&*databases) && now_tables.as_deref() == Some(&*tables) {
        return Ok(false);
    }
    stop(session).await?;
    session.say(doing, &format!("SET GLOBAL {NAME}.replicate_do_db = {}", quote::text(&databases))).await?;
    session
        .say(doing, &format!("SET GLOBAL {NAME}.replicate_wild_do_table = {}", quote::text(&tables)))
        .await?;
    Ok(true)
}

pub(super) async fn start(session: &mut Session) -> Result<(), Error> {
    session.say("start replication", &format!("START SLAVE '{NAME}'")).await
}

/// Nothing is applied any more when it returns; also where nothing was.
pub(super) async fn stop(session: &mut Session) -> Result<(), Error> {
    match status(session).await?.0 {
        Some(now) if now.receives != "No" || now.applies => {
            session.say("stop replication", &format!("STOP SLAVE '{NAME}'")).await
        }
        _ => Ok(()),
    }
}

/// As if it had never been; the server's own position stays.
pub(super) async fn remove(session: &mut Session) -> Result<(), Error> {
    if status(session).await?.0.is_none() {
        return Ok(());
    }
    stop(session).await?;
    let doing = "remove replication";
    session.say(doing, &format!("SET GLOBAL {NAME}.replicate_do_db = ''")).await?;
    session.say(doing, &format!("SET GLOBAL {NAME}.replicate_wild_do_table = ''")).await?;
    session.say(doing, &format!("RESET SLAVE '{NAME}' ALL")).await
}
