//! Where a database is, as people write it: `postgres://user@host:port/database?sslmode=…`, `mysql://…`, `redis://…`. Never
//! holds a password.

use percent_encoding::percent_decode_str;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use url::Url;

/// Whose language is spoken there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Postgres,
    /// MySQL and MariaDB: which of them, the server says.
    Mysql,
    Redis,
}

impl Engine {
    /// The scheme of its addresses.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Mysql => "mysql",
            Self::Redis => "redis",
        }
    }

    /// As people call it.
    pub fn shown(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Mysql => "MySQL or MariaDB",
            Self::Redis => "Redis",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Postgres => 5432,
            Self::Mysql => 3306,
            Self::Redis => 6379,
        }
    }
}

/// How the way to the server is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// Not at all: a socket on this machine, or somebody said so (`sslmode=disable`).
    Off,
    /// The certificate must be good for the host; by the system's authorities, and those of `sslrootcert`.
    Verified { authorities: Option<PathBuf> },
}

/// A database on a server. Its text form can be written again and holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub engine: Engine,
    /// A name, an address, or the folder of a socket (MySQL, Redis: the socket itself).
    pub host: String,
    pub port: u16,
    /// Redis: `default` where none is named.
    pub user: String,
    /// Redis: the number of one, `0` where none is named.
    pub database: String,
    pub tls: Tls,
}

/// Why an address cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressError {
    pub text: String,
    pub hint: String,
}

impl AddressError {
    fn new(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { text: text.into(), hint: hint.into() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.engine.scheme();
        write!(f, "{scheme}://{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

impl Address {
    /// # Errors
    /// It is no address of a database that can be used here; a password in it is one of the reasons.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let example = "write postgres://user@host:5432/database, mysql://… or redis://…";
        // The text may hold a password, so it is not shown.
        let url = Url::parse(text)
            .map_err(|error| AddressError::new(format!("the address makes no sense: {error}"), example))?;
        let engine = match url.scheme() {
            "postgres" | "postgresql" => Engine::Postgres,
            "mysql" | "mariadb" => Engine::Mysql,
            "redis" | "rediss" => Engine::Redis,
            other => {
                return Err(AddressError::new(format!("`{other}://` is no database known here"), example));
            }
        };
        if url.password().is_some() {
            return Err(AddressError::new(
                "the address holds a password, which everybody on this machine can read in the list of processes",
                "leave it out, and name where it is: --password env:NAME, file:PATH or cmd:PROGRAM",
            ));
        }
        let decoded = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        let mut host = url.host_str().map(decoded).unwrap_or_default();
        let (mut mode, mut authorities) = (None, None);
        for (key, value) in url.query_pairs() {
            match &*key {
                "host" | "socket" => host = value.into_owned(),
                "sslmode" => mode = Some(value.into_owned()),
                "sslrootcert" => authorities = Some(PathBuf::from(&*value)),
                _ => {
                    let known = "host or socket (a path), sslmode and sslrootcert are known";
                    return Err(AddressError::new(format!("`{key}` is not known in an address"), known));
                }
            }
        }
        if host.is_empty() {
            return Err(AddressError::new("the address names no host", example));
        }
        let mut user = decoded(url.username());
        let mut database = decoded(url.path().trim_start_matches('/'));
        if engine == Engine::Redis {
            user = if user.is_empty() { "default".to_owned() } else { user };
            database = if database.is_empty() { "0".to_owned() } else { database };
        }
        if user.is_empty() || database.is_empty() {
            let missing = if user.is_empty() { "user" } else { "database" };
            return Err(AddressError::new(format!("the address names no {missing}"), example));
        }
        let mut tls = tls(&host, mode.as_deref(), authorities)?;
        if url.scheme() == "rediss" && tls == Tls::Off && mode.is_none() {
            tls = Tls::Verified { authorities: None };
        }
        Ok(Self { engine, host, port: url.port().unwrap_or(engine.port()), user, database, tls })
    }
}

fn tls(host: &str, mode: Option<&str>, authorities: Option<PathBuf>) -> Result<Tls, AddressError> {
    match mode {
        Some("disable") => Ok(Tls::Off),
        Some("verify-full") => Ok(Tls::Verified { authorities }),
        None if authorities.is_none() && is_here(host) => Ok(Tls::Off),
        None => Ok(Tls::Verified { authorities }),
        Some(mode @ ("allow" | "prefer" | "require" | "verify-ca")) => Err(AddressError::new(
            format!("sslmode={mode} does not prove which server answers"),
            "leave it out (the certificate is verified; sslrootcert=FILE names an authority), or say sslmode=disable",
        )),
        Some(mode) => {
            Err(AddressError::new(format!("sslmode={mode} is not known"), "verify-full and disable are"))
        }
    }
}

/// Is nobody in between?
fn is_here(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.starts_with('/')
        || host == "localhost"
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_who_where_and_how() {
        let address = Address::parse("postgres://sh%40p@db.example:6432/or%20ders").unwrap();
        assert_eq!((&*address.user, &*address.host, address.port), ("sh@p", "db.example", 6432));
        assert_eq!((&*address.database, address.tls), ("or ders", Tls::Verified { authorities: None }));
        let here = Address::parse("postgresql://app@127.0.0.1/shop").unwrap();
        assert_eq!((here.port, here.tls), (5432, Tls::Off));
        let socket = Address::parse("postgres://app@x/shop?host=/run/postgresql").unwrap();
        assert_eq!((&*socket.host, socket.tls), ("/run/postgresql", Tls::Off));
        let cache = Address::parse("rediss://127.0.0.1").unwrap();
        assert_eq!(
            (cache.engine, cache.port, &*cache.user, &*cache.database),
            (Engine::Redis, 6379, "default", "0")
        );
        assert_eq!(cache.tls, Tls::Verified { authorities: None });
        assert_eq!(Address::parse("mariadb://app@db/shop").unwrap().to_string(), "mysql://app@db:3306/shop");
        let known = Address::parse("postgres://app@127.0.0.1/shop?sslrootcert=ca.pem").unwrap();
        assert_eq!(known.tls, Tls::Verified { authorities: Some("ca.pem".into()) });
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for (text, wanted) in [
            ("postgres://app:hunter2@db/shop", "holds a password"),
            ("postgres://db/shop", "names no user"),
            ("postgres://app@db", "names no database"),
            ("postgres://app@db/shop?sslmode=require", "does not prove which server"),
            ("postgres://app@db/shop?sslmode=on", "is not known"),
            ("postgres://app@db/shop?target_session_attrs=any", "is not known"),
            ("sqlite://x", "no database known"),
            ("shop", "makes no sense"),
        ] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.text.contains(wanted) && !error.text.contains("hunter2"), "{text}: {}", error.text);
        }
    }
}
