//! A real server, and sessions on it.

use rehome_databases::Address;
use rehome_databases::postgres::{self, PostgresPart, Session};
use rehome_part::{Part, Progress, Side};
use rehome_testkit::mariadb::Mariadb;
use rehome_testkit::postgres::{Postgres, major_of, programs_of_or_skip, programs_or_skip};
use std::path::PathBuf;
use std::sync::Arc;

/// A server, or a word that the test did not run.
pub fn server(settings: &[(&str, &str)]) -> Option<Postgres> {
    Some(Postgres::start(&programs_or_skip()?, settings).unwrap())
}

/// The programs of the two servers of a move, and of who reads the schema.
#[derive(Debug, Clone)]
pub struct Versions {
    source: PathBuf,
    target: PathBuf,
    /// `None`: they are looked for.
    tools: Option<PathBuf>,
}

impl Versions {
    /// The machine's own on both sides.
    pub fn own() -> Option<Self> {
        let programs = programs_or_skip()?;
        Some(Self { source: programs.clone(), target: programs, tools: None })
    }

    /// With the target's `pg_dump`, where it has one.
    pub fn of(source: i32, target: i32) -> Option<Self> {
        let (source, target) = (programs_of_or_skip(source)?, programs_of_or_skip(target)?);
        let tools = target.join("pg_dump").exists().then(|| target.clone());
        Some(Self { source, target, tools })
    }

    /// With the `pg_dump` of this version.
    pub fn with_tools(self, major: i32) -> Option<Self> {
        Some(Self { tools: Some(programs_of_or_skip(major)?), ..self })
    }

    /// Source and target.
    pub fn start(&self, settings: &[(&str, &str)]) -> (Postgres, Postgres) {
        let start = |programs| {
            let mut settings = settings.to_vec();
            // Before it was `max_replication_slots`.
            if major_of(programs).unwrap() >= 18 {
                settings.push(("max_active_replication_origins", "80"));
            }
            Postgres::start(programs, &settings).unwrap()
        };
        (start(&self.source), start(&self.target))
    }

    pub fn part(&self, part: PostgresPart) -> Arc<dyn Part> {
        match &self.tools {
            Some(folder) => Arc::new(part.with_tools(folder.clone())),
            None => Arc::new(part),
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
