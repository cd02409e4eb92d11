//! A real server, and sessions on it.

use rehome_databases::Address;
use rehome_databases::postgres::{self, Session};
use rehome_part::{Progress, Side};
use rehome_testkit::mariadb::Mariadb;
use rehome_testkit::postgres::{Postgres, programs_or_skip};

/// A server, or a word that the test did not run.
pub fn server(settings: &[(&str, &str)]) -> Option<Postgres> {
    Some(Postgres::start(&programs_or_skip()?, settings).unwrap())
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
