//! PgBouncer's admin console: statements of the simple protocol, answered with tables of text.

use super::PgBouncer;
use crate::backend::Backend;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow};

/// One connection to the console.
pub(super) struct Console {
    client: Client,
    patience: Duration,
}

/// What `SHOW DATABASES` says of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    host: String,
    port: u16,
    database: String,
    pub pool_mode: Option<String>,
    pub paused: bool,
    /// Open connections to the server.
    pub servers: u64,
}

impl Entry {
    pub fn is_at(&self, backend: &Backend) -> bool {
        self.host == backend.host && self.port == backend.port && self.database == backend.database
    }
}

/// What `SHOW STATS` says of one database.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stats {
    pub transactions: u64,
    /// Mean time of a transaction in the last period, in microseconds.
    pub mean_micros: f64,
}

/// As the console reads the name of a database.
pub(super) fn name(database: &str) -> String {
    format!("\"{}\"", database.replace('"', "\"\""))
}

impl Console {
    /// `patience`: how long it may take to answer, but for PAUSE.
    pub async fn open(bouncer: &PgBouncer, patience: Duration) -> Result<Self, String> {
        let mut config = Config::new();
        let (host, port) = &bouncer.console;
        config.host(host).port(*port).user(&bouncer.user).dbname("pgbouncer").connect_timeout(patience);
        if let Some(password) = &bouncer.password {
            config.password(password);
        }
        let connecting = tokio::time::timeout(patience, config.connect(NoTls)).await;
        let (client, connection) = connecting
            .map_err(|_| "its console does not answer".to_owned())?
            .map_err(|error| format!("its console at {host}:{port}: {}", words(&error)))?;
        // It ends with the client.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = words(&error), "a console of PgBouncer ended");
            }
        });
        Ok(Self { client, patience })
    }

    async fn rows(&self, statement: &str) -> Result<Vec<SimpleQueryRow>, String> {
        let answered = tokio::time::timeout(self.patience, self.client.simple_query(statement)).await;
        let messages = answered
            .map_err(|_| format!("{statement}: no answer"))?
            .map_err(|error| format!("{statement}: {}", words(&error)))?;
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    pub async fn say(&self, statement: &str) -> Result<(), String> {
        self.rows(statement).await.map(drop)
    }

    /// Returns when no transaction is under way; whoever asks gives up by dropping this.
    pub async fn pause(&self, database: &str) -> Result<(), String> {
        let statement = format!("PAUSE {}", name(database));
        let paused = self.client.simple_query(&statement).await;
        paused.map(drop).map_err(|error| format!("{statement}: {}", words(&error)))
    }

    pub async fn settings(&self) -> Result<BTreeMap<String, String>, String> {
        let rows = self.rows("SHOW CONFIG").await?;
        let pair = |row: &SimpleQueryRow| Some((row.get("key")?.to_owned(), row.get("value")?.to_owned()));
        Ok(rows.iter().filter_map(pair).collect())
    }

    pub async fn entry(&self, database: &str) -> Result<Option<Entry>, String> {
        let rows = self.rows("SHOW DATABASES").await?;
        let of = |row: &SimpleQueryRow| {
            let text = |key: &str| row.try_get(key).ok().flatten().unwrap_or_default().to_owned();
            Entry {
                host: text("host"),
                port: text("port").parse().unwrap_or_default(),
                database: text("database"),
                pool_mode: Some(text("pool_mode")).filter(|mode| !mode.is_empty()),
                paused: text("paused") == "1",
                servers: text("current_connections").parse().unwrap_or_default(),
            }
        };
        Ok(rows.iter().find(|row| row.get("name") == Some(database)).map(of))
    }

    pub async fn stats(&self, database: &str) -> Result<Stats, String> {
        let rows = self.rows("SHOW STATS").await?;
        let Some(row) = rows.iter().find(|row| row.get("database") == Some(database)) else {
            return Ok(Stats::default());
        };
        let number = |key: &str| row.try_get(key).ok().flatten().and_then(|text| text.parse::<f64>().ok());
        Ok(Stats {
            transactions: number("total_xact_count").unwrap_or_default() as u64,
            mean_micros: number("avg_xact_time").unwrap_or_default(),
        })
    }
}

/// The server's own words where there are some.
fn words(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}
