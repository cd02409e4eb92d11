//! Sessions: how a server is reached, what an answer that is an error means, and nothing of what is asked.

use crate::address::{Address, Tls};
use crate::trust::trust;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, Pipeline, RedisConnectionInfo, RedisError, Value};
use rehome_part::{Error, ErrorKind, Side};
use rustls::pki_types::ServerName;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

const CONNECT: Duration = Duration::from_secs(10);
/// The longest an answer may take; a large key is read whole.
const ANSWER: Duration = Duration::from_secs(20);

/// A connection of any kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A session on one side. Clones share one connection.
#[derive(Clone)]
pub struct Session {
    connection: MultiplexedConnection,
    side: Side,
    /// The connection failed; the next who wants one opens another.
    is_lost: Arc<AtomicBool>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("side", &self.side).finish_non_exhaustive()
    }
}

/// Opens a session in the database that the address names. `password`: `None` where the server asks for none.
///
/// # Errors
/// The server cannot be reached or proven, or does not let the user in; the text says which, and holds no secret.
pub async fn connect(address: &Address, password: Option<&str>, side: Side) -> Result<Session, Error> {
    let Ok(database) = address.database.parse::<i64>() else {
        let text = format!("{address}: Redis numbers its databases, `{}` is no number", address.database);
        return Err(Error::permanent(ErrorKind::NotFound, text).on(side));
    };
    let mut who = RedisConnectionInfo::default().set_db(database).set_skip_set_lib_name();
    if let Some(password) = password {
        who = who.set_username(&address.user).set_password(password);
    } else if address.user != "default" {
        // A user that needs no password still has to be named.
        who = who.set_username(&address.user).set_password("");
    }
    let stream = open(address, side).await?;
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER));
    let doing = format!("connect to {address}");
    let connecting = MultiplexedConnection::new_with_config(&who, stream, config);
    let connected =
        tokio::time::timeout(CONNECT * 2, connecting).await.map_err(|_| too_late(&doing, side))?;
    let (connection, driver) = connected.map_err(|error| error_of(&doing, &error).on(side))?;
    tokio::spawn(driver);
    Ok(Session { connection, side, is_lost: Arc::default() })
}

/// The way to the server, without a word said on it.
pub(super) async fn open(address: &Address, side: Side) -> Result<Box<dyn Stream>, Error> {
    let doing = format!("connect to {address}");
    let opening = async {
        if address.host.starts_with('/') {
            let stream = UnixStream::connect(Path::new(&address.host)).await;
            return stream.map(|stream| Box::new(stream) as Box<dyn Stream>);
        }
        let bare = address.host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((bare, address.port)).await?;
        stream.set_nodelay(true)?;
        let Tls::Verified { authorities } = &address.tls else { return Ok(Box::new(stream)) };
        let config = trust(authorities.as_deref()).map_err(|error| std::io::Error::other(error.text))?;
        let name = ServerName::try_from(bare.to_owned()).map_err(std::io::Error::other)?;
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok(Box::new(tls))
    };
    match tokio::time::timeout(CONNECT, opening).await {
        Ok(opened) => {
            opened.map_err(|error| Error::temporary(ErrorKind::Network, format!("{doing}: {error}")).on(side))
        }
        Err(_) => Err(too_late(&doing, side)),
    }
}

fn too_late(doing: &str, side: Side) -> Error {
    Error::temporary(ErrorKind::Network, format!("{doing}: no answer within {} s", CONNECT.as_secs()))
        .on(side)
}

/// A command of these words.
pub(super) fn command(words: &[&str]) -> Cmd {
    let mut command = Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command
}

impl Session {
    pub fn side(&self) -> Side {
        self.side
    }

    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// # Errors
    /// `doing` says what was tried; the command itself is not shown, since it may hold a secret.
    pub(super) async fn ask<T: FromRedisValue>(&self, doing: &str, words: &[&str]) -> Result<T, Error> {
        self.asked(words).await.map_err(|error| self.error(doing, &error))
    }

    /// The same, for a caller who has to know which error it was.
    pub(super) async fn asked<T: FromRedisValue>(&self, words: &[&str]) -> Result<T, RedisError> {
        command(words).query_async(&mut self.connection.clone()).await
    }

    /// # Errors
    /// As [`Self::ask`], by the first command that failed.
    pub(super) async fn ask_all<T: FromRedisValue>(&self, doing: &str, all: &Pipeline) -> Result<T, Error> {
        all.query_async(&mut self.connection.clone()).await.map_err(|error| self.error(doing, &error))
    }

    /// The answers one by one; an error is a value among them.
    pub(super) async fn answers(&self, doing: &str, all: &[Cmd]) -> Result<Vec<Value>, Error> {
        if all.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = Pipeline::with_capacity(all.len());
        pipeline.ignore_errors();
        for command in all {
            pipeline.add_command(command.clone());
        }
        pipeline.query_async(&mut self.connection.clone()).await.map_err(|error| self.error(doing, &error))
    }

    /// For scripts of commands that belong together on one connection of their own.
    pub(super) fn connection(&mut self) -> &mut MultiplexedConnection {
        &mut self.connection
    }

    pub(super) fn error(&self, doing: &str, error: &RedisError) -> Error {
        let error = error_of(doing, error).on(self.side);
        if error.kind == ErrorKind::Network {
            self.is_lost.store(true, Ordering::Relaxed);
        }
        error
    }
}

/// The server's words hold a command's name at most, never its arguments.
fn error_of(doing: &str, error: &RedisError) -> Error {
    let text = format!("{doing}: {error}");
    match error.code() {
        Some("NOPERM") => Error::permanent(ErrorKind::Credentials, text)
            .hint("give our user all commands: ACL SETUSER rehome on >… ~* &* +@all"),
        Some("WRONGPASS" | "NOAUTH") => password_hint(text),
        Some("LOADING" | "BUSY" | "MASTERDOWN" | "TRYAGAIN") => Error::temporary(ErrorKind::Network, text),
        Some("OOM" | "MISCONF") => Error::permanent(ErrorKind::Full, text),
        Some(_) if error.kind() == redis::ErrorKind::AuthenticationFailed => password_hint(text),
        Some(_) => Error::permanent(ErrorKind::Other, text),
        None if error.kind() == redis::ErrorKind::AuthenticationFailed => password_hint(text),
        None if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() => {
            Error::temporary(ErrorKind::Network, text)
        }
        None => Error::permanent(ErrorKind::Other, text),
    }
}

fn password_hint(text: String) -> Error {
    Error::permanent(ErrorKind::Credentials, text)
        .hint("name the password: --password env:NAME, file:PATH or cmd:PROGRAM")
}
