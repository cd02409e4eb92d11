//! A real server, and sessions on it.

use rehome_databases::Address;
use rehome_databases::postgres::{self, PostgresPart, Session};
use rehome_part::{Part, Progress, Side};
use rehome_testkit::mariadb::Mariadb;
use rehome_testkit::postgres::{Postgres, programs_of_or_skip, programs_or_skip};
use std::path::PathBuf;
use std::sync::Arc;

/// A server, or a word that the test did not run.
pub fn server(settings: &[(&str, &str)]) -> Option<Postgres> {
    Some(Postgres::start(&programs_or_skip()?, settings).unwrap())
}

/// The programs of the two servers of a move.
#[derive(Debug, Clone)]
pub struct Versions {
    pub source: PathBuf,
    pub target: PathBuf,
}

impl Versions {
    /// The machine's own on both sides.
    pub fn own() -> Option<Self> {
        let programs = programs_or_skip()?;
        Some(Self { source: programs.clone(), target: programs })
    }

    pub fn of(source: i32, target: i32) -> Option<Self> {
        Some(Self { source: programs_of_or_skip(source)?, target: programs_of_or_skip(target)? })
    }

    /// Source and target.
    pub fn start(&self, settings: &[(&str, &str)]) -> (Postgres, Postgres) {
        let start = |programs| Postgres::start(programs, settings).unwrap();
        (start(&self.source), start(&self.target))
    }

    /// A part that uses the target's `pg_dump`, where it has one.
    pub fn with_tools(&self, part: PostgresPart) -> Arc<dyn Part> {
        match self.target.join("pg_dump").exists() {
            true => Arc::new(part.with_tools(self.target.clone())),
            false => Arc::new(part),
        }
    }
}

pub fn address(server: &Postgres, user: &str, database: &str) -> Address {
    Address::parse(&server.address(user, database)).unwrap()
}

pub async fn session(server: &Postgres, user: &str, database: &str, side: Side) -> Session {
    postgres::connect(&address(server, user, database), None, side).await.unwrap()
}

/// A MariaDB server, or a word that the test did not run.
pub fn mariadb(options: &[&str]) -> Option<Mariadb> {
    rehome_testkit::mariadb::is_here().then(|| Mariadb::start(options).unwrap())
}

/// Progress nobody looks at.
#[derive(Debug)]
pub struct Unseen;

impl Progress for Unseen {
    fn update(&self, _: u64, _: u64, _: Option<u64>, _: Option<u64>) {}
}
