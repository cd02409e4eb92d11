//! A PostgreSQL server as a process of a world: made, filled with the shop's tables where it is to begin, reached over loopback with
//! passwords, ended with its parent. Its files are not below the world's folder, which only its owner may enter.

use super::{Postgres, programs};
use crate::cloud::CloudError;
use crate::cloud::process::{Ready, end_asked, read_config, say_ready};
use crate::shop::DATABASE_TABLES;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::Path;

/// The database, and the roles of the application and of the migration.
pub const DATABASE: &str = "shop";
pub const APPLICATION: &str = "shop";
pub const MIGRATION: &str = "rehome";

/// One server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    pub listen: SocketAddr,
    /// `None`: neither the application nor its tables are there; the migration brings them.
    pub application_password: Option<String>,
    pub migration_password: String,
    #[serde(default)]
    pub outlive_parent: bool,
}

const SETTINGS: [(&str, &str); 7] = [
    ("listen_addresses", "127.0.0.1"),
    ("fsync", "on"),
    ("max_connections", "200"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    ("max_slot_wal_keep_size", "1GB"),
    ("wal_retrieve_retry_interval", "500ms"),
];

/// Runs the server that the JSON file (mode 0600) describes until told to end.
pub async fn main(config_path: &Path) -> Result<(), CloudError> {
    let config: PostgresConfig = read_config(config_path)?;
    let failed = |why: String| CloudError::Config { path: config_path.into(), why };
    let (listen, outlive) = (config.listen, config.outlive_parent);
    let started = tokio::task::spawn_blocking(move || start(&config)).await;
    let server = started.map_err(|error| failed(error.to_string()))?.map_err(failed)?;
    say_ready(&Ready { pid: std::process::id(), addresses: vec![listen] })?;
    end_asked(outlive).await;
    drop(server);
    Ok(())
}

fn start(config: &PostgresConfig) -> Result<Postgres, String> {
    let programs = programs().ok_or("PostgreSQL's server programs are not on this machine")?;
    let port = config.listen.port().to_string();
    let mut settings = SETTINGS.to_vec();
    settings.push(("port", &port));
    let said = |error: std::io::Error| error.to_string();
    let server = Postgres::start(&programs, &settings).map_err(said)?;
    let doors = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(server.folder().join("data/pg_hba.conf"), doors).map_err(said)?;
    let sql = |database: &str, text: &str| server.sql(database, text).map_err(said);
    sql("postgres", "SELECT pg_reload_conf()")?;
    let made = format!("CREATE ROLE {MIGRATION} SUPERUSER LOGIN PASSWORD '{}'", config.migration_password);
    sql("postgres", &made)?;
    if let Some(password) = &config.application_password {
        sql("postgres", &format!("CREATE ROLE {APPLICATION} LOGIN PASSWORD '{password}'"))?;
        sql("postgres", &format!("CREATE DATABASE {DATABASE} OWNER {APPLICATION}"))?;
        sql(DATABASE, &format!("SET ROLE {APPLICATION}; {DATABASE_TABLES}"))?;
    }
    Ok(server)
}
