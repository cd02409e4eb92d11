//! A comparison of two real servers while one follows the other by its own logical replication, under writes.

use crate::support::*;
use rehome_databases::verify::{Found, Options, Pair, Progress, verify};
use rehome_testkit::postgres::{Postgres, programs};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const TABLES: &str =
    "CREATE TABLE orders (id bigserial PRIMARY KEY, what text NOT NULL, changed int NOT NULL DEFAULT 0);
    CREATE TABLE total (id int PRIMARY KEY, orders bigint NOT NULL);";

/// Writes until it is ended: new rows, changed rows, and one row that every write changes. The rows of which a change
/// is dropped stay untouched: the next change of such a row carries the whole of it, and mends it.
const WRITES: &str = "DO $$ BEGIN LOOP
        INSERT INTO orders (what) VALUES ('live ' || random());
        UPDATE orders SET changed = changed + 1 WHERE id = (random() * 20000)::bigint AND id NOT IN (123, 15000);
        UPDATE total SET orders = orders + 1 WHERE id = 1;
        COMMIT; PERFORM pg_sleep(0.001);
    END LOOP; END $$";

struct Followed {
    source: Postgres,
    target: Postgres,
    marks: tempfile::TempDir,
}

impl Followed {
    fn start() -> Option<Self> {
        let (source, target) = (server(&[("fsync", "off")])?, server(&[("fsync", "off")])?);
        for server in [&source, &target] {
            server.sql("postgres", "CREATE DATABASE shop").unwrap();
            server.sql("shop", TABLES).unwrap();
        }
        source
            .sql(
                "shop",
                "INSERT INTO orders (what) SELECT 'order ' || n FROM generate_series(1, 20000) n;
                 INSERT INTO total VALUES (1, 20000); CREATE PUBLICATION moved FOR ALL TABLES;",
            )
            .unwrap();
        let from = format!("host={} dbname=shop user=postgres", source.folder().display());
        target
            .sql("shop", &format!("CREATE SUBSCRIPTION moved CONNECTION '{from}' PUBLICATION moved"))
            .unwrap();
        Some(Self { source, target, marks: tempfile::tempdir().unwrap() })
    }

    /// Until the first copy is through and the target has what the source has now.
    async fn caught_up(&self) {
        let mark = self.source.sql("shop", "INSERT INTO orders (what) VALUES ('mark') RETURNING id").unwrap();
        for _ in 0..3000 {
            let there = format!("SELECT count(*) FROM orders WHERE id = {mark}");
            if self.target.sql("shop", &there).unwrap() == "1" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the target does not follow");
    }

    fn writer(&self) -> Writer {
        let mut command = Command::new(programs().unwrap().join("psql"));
        command.args(["-X", "-q", "-c", WRITES]).arg(self.source.address("postgres", "shop"));
        Writer(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// The server would go on for a client that is gone.
    fn end(&self, writer: Writer) {
        let ends = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE query LIKE 'DO %' AND state <> 'idle'";
        self.source.sql("shop", ends).unwrap();
        drop(writer);
    }

    async fn compare(&self) -> Vec<(String, Found, u64)> {
        let end = |server| (address(server, "postgres", "shop"), None);
        let pair = Pair { source: end(&self.source), target: end(&self.target) };
        let options = Options { patience: Duration::from_secs(3), chunk_rows: 2_000, ..Options::default() };
        let (progress, stop) = (Arc::<Progress>::default(), CancellationToken::new());
        let compared = verify(&pair, &options, self.marks.path(), progress, stop).await.unwrap();
        compared.into_iter().map(|one| (one.table, one.found, one.differing)).collect()
    }
}

struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _ended = self.0.wait();
    }
}

#[tokio::test]
async fn under_writes_nothing_is_accused_and_a_dropped_transaction_is_found() {
    let Some(followed) = Followed::start() else { return };
    followed.caught_up().await;
    let writer = followed.writer();
    let under_writes = followed.compare().await;
    followed.end(writer);
    let (orders, total) = (&under_writes[0], &under_writes[1]);
    assert_eq!((&*orders.0, &orders.1, orders.2), ("public.orders", &Found::Same, 0), "{under_writes:?}");
    // One row that every write changes may never be seen alike on both sides, but it is not called different.
    assert!(total.2 == 0 && total.1 != Found::Differs, "{under_writes:?}");

    // Nobody follows while a transaction commits, and the follower is told that it has it already.
    followed.caught_up().await;
    followed.target.sql("shop", "ALTER SUBSCRIPTION moved DISABLE").unwrap();
    let is_read = "SELECT count(*) FROM pg_replication_slots WHERE active";
    while followed.source.sql("shop", is_read).unwrap() != "0" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    followed.source.sql("shop", "UPDATE orders SET what = 'dropped' WHERE id IN (123, 15000)").unwrap();
    followed.source.sql("shop", "SELECT pg_replication_slot_advance('moved', pg_current_wal_lsn())").unwrap();
    followed.target.sql("shop", "ALTER SUBSCRIPTION moved ENABLE").unwrap();
    followed.caught_up().await;
    let writer = followed.writer();
    let found = followed.compare().await;
    followed.end(writer);
    assert_eq!((&found[0].1, found[0].2), (&Found::Differs, 2), "{found:?}");
}
