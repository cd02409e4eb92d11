//! What the migration keeps on the two servers: the schema `rehome` with markers and heartbeats, and the user that replication comes as.

use super::connect::Session;
use super::quote;
use rehome_part::{Error, ErrorKind, Flow, Marker};

pub(super) const SCHEMA: &str = "rehome";
/// The user that the other side's server replicates as.
pub(super) const REPLICA: &str = "rehome_replica";
/// Its tables, for whoever copies them.
pub(super) const TABLES: [&str; 2] = ["heartbeat", "marker"];

/// Makes the schema. It is in the binary log like everything else: replicas that this server has already get its rows as well.
pub(super) async fn make(session: &mut Session) -> Result<(), Error> {
    let doing = "make the schema rehome";
    let (there,): (u64,) = session
        .row(
            doing,
            "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'rehome' AND TABLE_NAME IN ('heartbeat', 'marker')",
            (),
        )
        .await?;
    if there == TABLES.len() as u64 {
        return Ok(());
    }
    for statement in [
        "CREATE DATABASE IF NOT EXISTS rehome CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        "CREATE TABLE IF NOT EXISTS rehome.heartbeat (part varchar(100) NOT NULL, flow varchar(10) NOT NULL, \
         beat bigint unsigned NOT NULL, PRIMARY KEY (part, flow)) ENGINE = InnoDB",
        "CREATE TABLE IF NOT EXISTS rehome.marker (part varchar(100) NOT NULL, epoch bigint unsigned NOT NULL, \
         nonce varchar(100) NOT NULL, PRIMARY KEY (part, epoch, nonce)) ENGINE = InnoDB",
    ] {
        session.say(doing, statement).await?;
    }
    Ok(())
}

/// Removes the schema, unless another part is still in it, and the user.
pub(super) async fn remove(session: &mut Session, part: &str) -> Result<(), Error> {
    let doing = "remove the schema rehome";
    let (there,): (u64,) = session
        .row(doing, "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'rehome'", ())
        .await?;
    if there == TABLES.len() as u64 {
        let mut others = 0;
        for table in TABLES {
            let statement = format!("SELECT COUNT(*) FROM rehome.{table} WHERE part <> ?");
            let (rows,): (u64,) = session.row(doing, &statement, (part,)).await?;
            others += rows;
        }
        if others > 0 {
            for table in TABLES {
                session.run(doing, &format!("DELETE FROM rehome.{table} WHERE part = ?"), (part,)).await?;
            }
            return Ok(());
        }
    }
    session.say(doing, "DROP DATABASE IF EXISTS rehome").await?;
    session.off_the_record().await?;
    let account = quote::account(REPLICA, "%");
    session.say("remove the replication user", &format!("DROP USER IF EXISTS {account}")).await
}

/// Gives the replication user a new password, which nobody writes down but the other side's server.
pub(super) async fn new_replica_password(session: &mut Session) -> Result<String, Error> {
    let mut bytes = [0_u8; 24];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::permanent(ErrorKind::Other, format!("no random numbers: {error}")))?;
    let password: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let account = quote::account(REPLICA, "%");
    let secret = quote::text(&password);
    session.off_the_record().await?;
    for statement in [
        format!("CREATE USER IF NOT EXISTS {account} IDENTIFIED BY {secret}"),
        format!("ALTER USER {account} IDENTIFIED BY {secret} ACCOUNT UNLOCK"),
        format!("GRANT REPLICATION SLAVE ON *.* TO {account}"),
    ] {
        // The words of a refusal may quote the statement.
        session.say("make the replication user", &statement).await.map_err(|error| Error {
            text: format!("the replication user {REPLICA} cannot be made"),
            hint: Some(
                "grant the migration's user CREATE USER and REPLICATION SLAVE, WITH GRANT OPTION".into(),
            ),
            ..error
        })?;
    }
    session.say("go on in the binary log", "SET SESSION sql_log_bin = 1").await?;
    Ok(password)
}

pub(super) async fn mark(session: &mut Session, part: &str, marker: &Marker) -> Result<(), Error> {
    let statement = "INSERT INTO rehome.marker (part, epoch, nonce) VALUES (?, ?, ?) ON DUPLICATE KEY UPDATE nonce = VALUES(nonce)";
    session.run("write the marker", statement, (part, marker.epoch.0, &*marker.nonce)).await.map(drop)
}

pub(super) async fn beat(session: &mut Session, part: &str, flow: Flow, beat: u64) -> Result<(), Error> {
    let statement = "INSERT INTO rehome.heartbeat (part, flow, beat) VALUES (?, ?, ?) ON DUPLICATE KEY UPDATE beat = VALUES(beat)";
    session.run("write a heartbeat", statement, (part, word(flow), beat)).await.map(drop)
}

pub(super) fn word(flow: Flow) -> &'static str {
    match flow {
        Flow::Forward => "forward",
        Flow::Reverse => "reverse",
    }
}
