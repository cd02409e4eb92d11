//! Sessions: how a server is reached, and what every session sets so that two servers write the same value alike.

use crate::address::{Address, Tls};
use crate::trust::trust;
use futures::TryStreamExt;
use rehome_part::{Error, ErrorKind, Side};
use std::time::Duration;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row, SimpleQueryMessage, SimpleQueryRow};
use tokio_postgres_rustls::MakeRustlsConnect;

const CONNECT: Duration = Duration::from_secs(10);

/// The same text for the same value on every server: whatever of these differs between two would look like a difference of data.
/// No name is found by a search path, so a table of that name elsewhere cannot stand in.
const SETTINGS: &str = "SET search_path = pg_catalog; SET timezone = 'UTC'; SET datestyle = 'ISO, YMD'; \
    SET intervalstyle = 'postgres'; SET extra_float_digits = 1; SET bytea_output = 'hex'; SET xmloption = 'content'; \
    SET lc_monetary = 'C'; SET client_encoding = 'UTF8'; SET idle_in_transaction_session_timeout = '5min'; \
    SET lock_timeout = '10s'; SET default_transaction_read_only = ";

/// What a session may do. Either way the server's or the database's own word on it does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum May {
    Read,
    Write,
}

/// A session on one side.
#[derive(Debug)]
pub struct Session {
    client: Client,
    side: Side,
}

/// Opens a session that reads only. `password`: `None` where the server asks for none.
///
/// # Errors
/// The server cannot be reached or proven, or does not let the user in; the text says which, and holds no secret.
pub async fn connect(address: &Address, password: Option<&str>, side: Side) -> Result<Session, Error> {
    connect_to(address, password, side, May::Read).await
}

/// Opens a session, to write too if it `may`.
///
/// # Errors
/// As [`connect`].
pub async fn connect_to(
    address: &Address,
    password: Option<&str>,
    side: Side,
    may: May,
) -> Result<Session, Error> {
    let mut config = Config::new();
    config.host(&address.host).port(address.port).user(&address.user).dbname(&address.database);
    config.application_name("rehome").connect_timeout(CONNECT).keepalives_idle(Duration::from_secs(30));
    if let Some(password) = password {
        config.password(password);
    }
    let client = match &address.tls {
        Tls::Off => {
            config.ssl_mode(SslMode::Disable);
            let (client, connection) = timed(config.connect(NoTls), address, side).await?;
            tokio::spawn(async move { ended(connection.await) });
            client
        }
        Tls::Verified { authorities } => {
            config.ssl_mode(SslMode::Require);
            let tls = MakeRustlsConnect::new(trust(authorities.as_deref()).map_err(|error| error.on(side))?);
            let (client, connection) = timed(config.connect(tls), address, side).await?;
            tokio::spawn(async move { ended(connection.await) });
            client
        }
    };
    let session = Session { client, side };
    session
        .client
        .batch_execute(&format!("{SETTINGS}{}", if may == May::Read { "on" } else { "off" }))
        .await
        .map_err(|error| session.error("prepare a session", &error))?;
    Ok(session)
}

async fn timed<T>(
    connecting: impl Future<Output = Result<T, tokio_postgres::Error>>,
    address: &Address,
    side: Side,
) -> Result<T, Error> {
    match tokio::time::timeout(CONNECT * 2, connecting).await {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err(error)) => Err(error_of(&format!("connect to {address}"), &error).on(side)),
        Err(_) => {
            let text = format!("connect to {address}: no answer within {} s", CONNECT.as_secs() * 2);
            Err(Error::temporary(ErrorKind::Network, text).on(side))
        }
    }
}

fn ended(how: Result<(), tokio_postgres::Error>) {
    if let Err(error) = how {
        tracing::debug!(%error, "a session ended");
    }
}

impl Session {
    pub fn side(&self) -> Side {
        self.side
    }

    /// # Errors
    /// `doing` says what was tried; the statement itself is not shown.
    pub async fn rows(
        &self,
        doing: &str,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        self.client.query(statement, values).await.map_err(|error| self.error(doing, &error))
    }

    /// # Errors
    /// As [`Self::rows`]; also when there is not exactly one row.
    pub async fn row(
        &self,
        doing: &str,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, Error> {
        self.client.query_one(statement, values).await.map_err(|error| self.error(doing, &error))
    }

    /// Runs statements without values, all or none: a message of several is one transaction.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub async fn run(&self, doing: &str, statements: &str) -> Result<(), Error> {
        self.client.batch_execute(statements).await.map_err(|error| self.error(doing, &error))
    }

    /// Rows as text, by one message and one answer: what is asked while writes wait must not cost a second round trip for the types
    /// of its values. They are in the statement, as literals.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub(super) async fn asked(&self, doing: &str, statement: &str) -> Result<Vec<SimpleQueryRow>, Error> {
        let messages =
            self.client.simple_query(statement).await.map_err(|error| self.error(doing, &error))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// As [`Self::run`], with what the server said of it.
    pub(super) async fn try_run(&self, statements: &str) -> Result<(), tokio_postgres::Error> {
        self.client.batch_execute(statements).await
    }

    /// The connection is gone; whatever is asked of it fails.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Reads all that a `COPY … TO STDOUT` gives, and says how much it was.
    pub(super) async fn copied_out(&self, doing: &str, statement: &str) -> Result<u64, Error> {
        let copied = self.client.copy_out(statement).await.map_err(|error| self.error(doing, &error))?;
        let sum = copied.try_fold(0, |sum, piece| std::future::ready(Ok(sum + piece.len() as u64)));
        sum.await.map_err(|error| self.error(doing, &error))
    }

    pub(super) fn error(&self, doing: &str, error: &tokio_postgres::Error) -> Error {
        error_of(doing, error).on(self.side)
    }
}

pub(super) fn error_of(doing: &str, error: &tokio_postgres::Error) -> Error {
    let Some(db) = error.as_db_error() else {
        let text = format!("{doing}: {}", chain(error));
        return Error::temporary(ErrorKind::Network, text);
    };
    let text = format!("{doing}: {} ({})", db.message(), db.code().code());
    match *db.code() {
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            Error::permanent(ErrorKind::Credentials, text)
                .hint("name the password: --password env:NAME, file:PATH or cmd:PROGRAM")
        }
        SqlState::INSUFFICIENT_PRIVILEGE => Error::permanent(ErrorKind::Credentials, text)
            .hint("use a role that may read all tables (pg_read_all_data, or the owner)"),
        SqlState::INVALID_CATALOG_NAME => Error::permanent(ErrorKind::NotFound, text),
        SqlState::TOO_MANY_CONNECTIONS
        | SqlState::CANNOT_CONNECT_NOW
        | SqlState::ADMIN_SHUTDOWN
        | SqlState::CRASH_SHUTDOWN => Error::temporary(ErrorKind::Network, text),
        SqlState::LOCK_NOT_AVAILABLE
        | SqlState::OBJECT_IN_USE
        | SqlState::T_R_DEADLOCK_DETECTED
        | SqlState::T_R_SERIALIZATION_FAILURE => Error::temporary(ErrorKind::Other, text),
        SqlState::DISK_FULL => Error::temporary(ErrorKind::Full, text),
        _ => Error::permanent(ErrorKind::Other, text),
    }
}

/// An error with its causes: the outermost alone often says "error connecting to server".
fn chain(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
