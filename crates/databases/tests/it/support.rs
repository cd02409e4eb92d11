//! A real server, and sessions on it.

use rehome_databases::Address;
use rehome_databases::postgres::{self, Session};
use rehome_part::Side;
use rehome_testkit::postgres::{Postgres, programs};

/// A server, or a word that the test did not run.
#[allow(clippy::print_stderr, reason = "a test that did not run says so")]
pub fn server(settings: &[(&str, &str)]) -> Option<Postgres> {
    let Some(programs) = programs() else {
        let required = std::env::var_os("REHOME_REQUIRE_TOOLS").is_some();
        assert!(!required, "PostgreSQL is missing: run scripts/tools.sh");
        eprintln!("SKIPPED: PostgreSQL is missing; run scripts/tools.sh");
        return None;
    };
    Some(Postgres::start(&programs, settings).unwrap())
}

pub fn address(server: &Postgres, user: &str, database: &str) -> Address {
    Address::parse(&server.address(user, database)).unwrap()
}

pub async fn session(server: &Postgres, user: &str, database: &str, side: Side) -> Session {
    postgres::connect(&address(server, user, database), None, side).await.unwrap()
}
