//! Sessions: how a server is reached, and what every session sets so that two servers write the same value alike.

use crate::address::{Address, Tls};
use crate::trust::authorities;
use mysql_async::prelude::{FromRow, Queryable};
use mysql_async::{
    Conn, Error as DriverError, Opts, OptsBuilder, Params, Pool, PoolConstraints, PoolOpts, Row, SslOpts,
};
use rehome_part::{Error, ErrorKind, Side};
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(10);

/// The same text for the same value on every server; values as they are, whatever the server's mode says of them.
const SETTINGS: &str = "SET NAMES utf8mb4, SESSION time_zone = '+00:00', SESSION lock_wait_timeout = 10, \
    SESSION innodb_lock_wait_timeout = 10, SESSION net_write_timeout = 600, SESSION net_read_timeout = 600, \
    SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES,NO_ENGINE_SUBSTITUTION'";

/// Which of the two families answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    MariaDb,
    Mysql,
}

/// A session on one side. It uses no schema: every name is written out, and no statement is taken for one of the schema's own.
#[derive(Debug)]
pub struct Session {
    pub(super) conn: Conn,
    side: Side,
    database: String,
}

/// Where sessions of one side are taken from and given back to.
#[derive(Clone)]
pub(super) struct Sessions {
    pool: Pool,
    pub side: Side,
    address: Address,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Opens a session. `password`: `None` where the server asks for none.
///
/// # Errors
/// The server cannot be reached or proven, or does not let the user in; the text says which, and holds no secret.
pub async fn connect(address: &Address, password: Option<&str>, side: Side) -> Result<Session, Error> {
    let opts = options(address, password).map_err(|error| error.on(side))?;
    let conn = timed(Conn::new(opts), address, side).await?;
    Ok(Session { conn, side, database: address.database.clone() })
}

async fn timed<T>(
    connecting: impl Future<Output = Result<T, DriverError>>,
    address: &Address,
    side: Side,
) -> Result<T, Error> {
    match tokio::time::timeout(CONNECT, connecting).await {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err(error)) => Err(error_of(&format!("connect to {address}"), &error).on(side)),
        Err(_) => {
            let text = format!("connect to {address}: no answer within {} s", CONNECT.as_secs());
            Err(Error::temporary(ErrorKind::Network, text).on(side))
        }
    }
}

fn options(address: &Address, password: Option<&str>) -> Result<Opts, Error> {
    let mut builder = OptsBuilder::default()
        .user(Some(&address.user))
        .pass(password)
        .prefer_socket(false)
        .stmt_cache_size(64)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(30)))
        .max_allowed_packet(Some(1 << 30))
        .setup(vec![SETTINGS]);
    builder = if address.host.starts_with('/') {
        builder.socket(Some(&address.host))
    } else {
        builder.ip_or_hostname(&address.host).tcp_port(address.port)
    };
    if let Tls::Verified { authorities: file } = &address.tls {
        let believed = authorities(file.as_deref())?;
        let roots = believed.iter().map(|one| one.to_vec().into()).collect();
        builder = builder
            .ssl_opts(Some(SslOpts::default().with_disable_built_in_roots(true).with_root_certs(roots)));
    }
    Ok(builder.into())
}

impl Sessions {
    pub fn new(address: &Address, password: Option<&str>, side: Side) -> Result<Self, Error> {
        let opts = options(address, password).map_err(|error| error.on(side))?;
        // What a session was set to must not reach whoever takes it next; what it was set up with is set anew.
        let constraints = PoolConstraints::new(0, 12).expect("no more at least than at most");
        let pool = PoolOpts::default()
            .with_constraints(constraints)
            .with_inactive_connection_ttl(Duration::from_secs(60))
            .with_reset_connection(true);
        let pool = Pool::new(OptsBuilder::from_opts(opts).pool_opts(pool));
        Ok(Self { pool, side, address: address.clone() })
    }

    pub async fn take(&self) -> Result<Session, Error> {
        let conn = timed(self.pool.get_conn(), &self.address, self.side).await?;
        Ok(Session { conn, side: self.side, database: self.address.database.clone() })
    }
}

impl Session {
    pub fn side(&self) -> Side {
        self.side
    }

    /// The schema that the address names.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// What the server says of itself, and which family that is.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub async fn version(&mut self) -> Result<(String, Flavour), Error> {
        let (version,): (String,) = self.row("read the version", "SELECT VERSION()", ()).await?;
        let is_maria = version.to_lowercase().contains("mariadb");
        Ok((version, if is_maria { Flavour::MariaDb } else { Flavour::Mysql }))
    }

    /// # Errors
    /// `doing` says what was tried; the statement itself is not shown.
    pub async fn rows<T: FromRow + Send + 'static>(
        &mut self,
        doing: &str,
        statement: &str,
        values: impl Into<Params> + Send,
    ) -> Result<Vec<T>, Error> {
        let side = self.side;
        let rows = match values.into() {
            // Preparing costs a round trip of its own, and there is nothing to prepare for.
            Params::Empty => self.conn.query(statement).await,
            values => self.conn.exec(statement, values).await,
        };
        rows.map_err(|error| error_of(doing, &error).on(side))
    }

    /// # Errors
    /// As [`Self::rows`]; also when there is no row.
    pub async fn row<T: FromRow + Send + 'static>(
        &mut self,
        doing: &str,
        statement: &str,
        values: impl Into<Params> + Send,
    ) -> Result<T, Error> {
        let side = self.side;
        let row = match values.into() {
            Params::Empty => self.conn.query_first(statement).await,
            values => self.conn.exec_first(statement, values).await,
        };
        let row = row.map_err(|error| error_of(doing, &error).on(side))?;
        row.ok_or_else(|| Error::permanent(ErrorKind::NotFound, format!("{doing}: no row")).on(side))
    }

    /// Runs a statement for its effect; answers how many rows it changed.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub async fn run(
        &mut self,
        doing: &str,
        statement: &str,
        values: impl Into<Params> + Send,
    ) -> Result<u64, Error> {
        let side = self.side;
        let done = self.conn.exec_drop(statement, values.into()).await;
        done.map_err(|error| error_of(doing, &error).on(side))?;
        Ok(self.conn.affected_rows())
    }

    /// The same for statements that a server does not prepare, one at a time.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub async fn say(&mut self, doing: &str, statement: &str) -> Result<(), Error> {
        let side = self.side;
        self.conn.query_drop(statement).await.map_err(|error| error_of(doing, &error).on(side))
    }

    /// Rows of a statement that a server does not prepare (`SHOW …`).
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub async fn shown(&mut self, doing: &str, statement: &str) -> Result<Vec<Row>, Error> {
        let side = self.side;
        self.conn.query(statement).await.map_err(|error| error_of(doing, &error).on(side))
    }

    /// What this session changes stays on this server: it concerns this server alone.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub(super) async fn off_the_record(&mut self) -> Result<(), Error> {
        self.say("leave the binary log", "SET SESSION sql_log_bin = 0").await
    }
}

/// The number of the server's refusal, if it was one.
pub(super) fn refusal(error: &DriverError) -> Option<u16> {
    match error {
        DriverError::Server(refused) => Some(refused.code),
        _ => None,
    }
}

pub(super) fn error_of(doing: &str, error: &DriverError) -> Error {
    let DriverError::Server(refused) = error else {
        let text = format!("{doing}: {error}");
        return match error {
            DriverError::Io(_) => Error::temporary(ErrorKind::Network, text),
            DriverError::Driver(_) => Error::temporary(ErrorKind::Network, text),
            _ => Error::permanent(ErrorKind::Other, text),
        };
    };
    let text = format!("{doing}: {} ({})", refused.message, refused.code);
    match refused.code {
        // Access denied, in its variants; an account that is locked.
        1044 | 1045 | 1698 | 3118 | 4151 => Error::permanent(ErrorKind::Credentials, text)
            .hint("name the password: --password env:NAME, file:PATH or cmd:PROGRAM"),
        1142 | 1143 | 1227 | 1370 => {
            Error::permanent(ErrorKind::Credentials, text).hint("grant the migration's user what this needs")
        }
        1049 | 1146 => Error::permanent(ErrorKind::NotFound, text),
        // Too many connections, shutting down, lock waits and deadlocks, killed.
        1040 | 1053 | 1203 | 1205 | 1213 | 1317 | 1927 => Error::temporary(ErrorKind::Network, text),
        1021 | 1114 | 3675 => Error::permanent(ErrorKind::Full, text),
        _ => Error::permanent(ErrorKind::Other, text),
    }
}
