//! Sessions: how a server is reached, and what every session sets so that two servers write the same value alike.

use crate::address::{Address, Tls};
use crate::trust::trust;
use futures::TryStreamExt;
use rehome_part::{Error, ErrorKind, Side};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row, SimpleQueryMessage, SimpleQueryRow};
use tokio_postgres_rustls::MakeRustlsConnect;

const CONNECT: Duration = Duration::from_secs(10);
/// What was sent and not even received by the other machine in this time is not going to be: without it the kernel tries on for a quarter
/// of an hour, and whoever waits for the answer with it.
const RECEIVED: Duration = Duration::from_secs(15);
/// A session that is asked nothing is looked after so often.
const IDLE: Duration = Duration::from_secs(10);
/// A statement that nobody waits for any more may be answered for so long; then the session counts as silent.
const LATE: Duration = Duration::from_secs(1);

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
    /// What the server calls it.
    number: i32,
    statements: Mutex<Statements>,
}

/// Statements are answered in their order, also those that nobody waits for any more.
#[derive(Debug, Default)]
struct Statements {
    sent: u64,
    answered: u64,
    /// The last one that changes something.
    changes: u64,
    /// When the first one without an answer was sent, or later.
    since: Option<Instant>,
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
    config.application_name("rehome").connect_timeout(CONNECT).tcp_user_timeout(RECEIVED);
    config.keepalives_idle(IDLE).keepalives_interval(IDLE / 2).keepalives_retries(2);
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
    let mut session = Session { client, side, number: 0, statements: Mutex::default() };
    let read_only = if may == May::Read { "on" } else { "off" };
    let prepare = format!("{SETTINGS}{read_only}; SELECT pg_backend_pid()");
    let prepared = tokio::time::timeout(CONNECT, session.asked("prepare a session", &prepare)).await;
    let rows = prepared.unwrap_or_else(|_| Err(no_answer(address, CONNECT).on(side)))?;
    session.number = rows.first().and_then(|row| row.get(0)?.parse().ok()).unwrap_or_default();
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
        Err(_) => Err(no_answer(address, CONNECT * 2).on(side)),
    }
}

fn no_answer(address: &Address, within: Duration) -> Error {
    let text = format!("connect to {address}: no answer within {} s", within.as_secs());
    Error::temporary(ErrorKind::Network, text)
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
        self.answer(false, self.client.query(statement, values))
            .await
            .map_err(|error| self.error(doing, &error))
    }

    /// # Errors
    /// As [`Self::rows`]; also when there is not exactly one row.
    pub async fn row(
        &self,
        doing: &str,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, Error> {
        let asked = self.answer(false, self.client.query_one(statement, values)).await;
        asked.map_err(|error| self.error(doing, &error))
    }

    /// Runs statements without values, all or none: a message of several is one transaction.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub async fn run(&self, doing: &str, statements: &str) -> Result<(), Error> {
        self.try_run(statements).await.map_err(|error| self.error(doing, &error))
    }

    /// Rows as text, by one message and one answer: what is asked while writes wait must not cost a second round trip for the types
    /// of its values. They are in the statement, as literals.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub(super) async fn asked(&self, doing: &str, statement: &str) -> Result<Vec<SimpleQueryRow>, Error> {
        self.simple(doing, statement, false).await
    }

    /// The same for a statement that changes something and says so in rows.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub(super) async fn done(&self, doing: &str, statement: &str) -> Result<Vec<SimpleQueryRow>, Error> {
        self.simple(doing, statement, true).await
    }

    async fn simple(
        &self,
        doing: &str,
        statement: &str,
        changes: bool,
    ) -> Result<Vec<SimpleQueryRow>, Error> {
        let asked = self.answer(changes, self.client.simple_query(statement)).await;
        let messages = asked.map_err(|error| self.error(doing, &error))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// As [`Self::run`], with what the server said of it.
    pub(super) async fn try_run(&self, statements: &str) -> Result<(), tokio_postgres::Error> {
        self.answer(true, self.client.batch_execute(statements)).await
    }

    /// Keeps account of a statement. A connection that broke is no answer.
    async fn answer<T>(
        &self,
        changes: bool,
        asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, tokio_postgres::Error> {
        let number = {
            let mut statements = self.statements();
            statements.sent += 1;
            statements.since.get_or_insert_with(Instant::now);
            if changes {
                statements.changes = statements.sent;
            }
            statements.sent
        };
        let answered = asked.await;
        if answered.as_ref().err().is_none_or(|error| error.as_db_error().is_some()) {
            let mut statements = self.statements();
            statements.answered = statements.answered.max(number);
            statements.since = (statements.answered < statements.sent).then(Instant::now);
        }
        answered
    }

    fn statements(&self) -> MutexGuard<'_, Statements> {
        self.statements.lock().expect("no code panics while it holds this lock")
    }

    /// The connection is gone; whatever is asked of it fails.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Its number at the server, if something that changes a thing was sent and not answered: it may still be done, at any time.
    pub(super) fn in_doubt(&self) -> Option<i32> {
        let statements = self.statements();
        (statements.changes > statements.answered).then_some(self.number)
    }

    /// It owes an answer that does not come.
    pub(super) fn is_silent(&self) -> bool {
        self.statements().since.is_some_and(|since| since.elapsed() > LATE)
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
