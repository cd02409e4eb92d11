//! What `assess` finds on a real server, and what it does not invent.

use crate::support::*;
use rehome_databases::postgres::{self, Assessed};
use rehome_part::{Finding, Severity, Side};
use std::process::{Command, Stdio};
use std::time::Duration;

fn ids(findings: &[Finding], severity: Severity) -> Vec<&str> {
    let mut ids: Vec<&str> =
        findings.iter().filter(|finding| finding.severity == severity).map(|finding| &*finding.id).collect();
    ids.sort_unstable();
    ids
}

const GOOD: &str = "
    CREATE TABLE orders (id bigserial PRIMARY KEY, what text NOT NULL);
    CREATE TABLE items (order_id bigint REFERENCES orders, line int, PRIMARY KEY (order_id, line));
    INSERT INTO orders (what) SELECT 'order ' || n FROM generate_series(1, 1000) n; ANALYZE;";

#[tokio::test]
async fn a_database_that_can_move_has_nothing_in_the_way() {
    let Some(server) = server(&[("max_slot_wal_keep_size", "1GB")]) else { return };
    server
        .sql("postgres", "CREATE ROLE mover LOGIN REPLICATION IN ROLE pg_read_all_data, pg_monitor")
        .unwrap();
    server.sql("postgres", "CREATE DATABASE shop").unwrap();
    server.sql("postgres", "CREATE DATABASE fresh").unwrap();
    server.sql("shop", GOOD).unwrap();
    let session = session(&server, "mover", "shop", Side::Source).await;
    let watched = async {
        let assessed = postgres::assess(&session, Duration::from_secs(2)).await.unwrap();
        let blockers = ids(&assessed.findings, Severity::Blocker);
        assert_eq!(blockers, Vec::<&str>::new(), "{:?}", assessed.findings);
        assessed
    };
    let written = tokio::task::spawn_blocking({
        let sql = "INSERT INTO orders (what) SELECT 'later' FROM generate_series(1, 500)";
        let target = server.address("postgres", "shop");
        let programs = rehome_testkit::postgres::programs().unwrap();
        move || {
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(150));
                let done =
                    Command::new(programs.join("psql")).args(["-X", "-q", "-c", sql, &target]).status();
                assert!(done.unwrap().success());
            }
        }
    });
    let (assessed, written): (Assessed, _) = tokio::join!(watched, written);
    written.unwrap();
    assert_eq!((assessed.tables, assessed.rows, assessed.sequences), (2, 1000, 1));
    assert_eq!(assessed.largest[0].0, "public.orders");
    assert!(assessed.read_seconds.unwrap() > 0.0);
    assert_eq!(ids(&assessed.findings, Severity::Warning), Vec::<&str>::new(), "{:?}", assessed.findings);
    let watched = assessed.watched.unwrap();
    assert!(watched.seconds >= 2.0 && watched.log_bytes_per_second > 1000.0, "{watched:?}");
    let fresh = crate::support::session(&server, "mover", "fresh", Side::Target).await;
    let fits = postgres::fits(&assessed, &fresh).await.unwrap();
    assert_eq!(ids(&fits, Severity::Info), ["target-empty"], "{fits:?}");
    assert_eq!(fits.len(), 1);
}

#[tokio::test]
async fn everything_that_would_be_lost_or_stand_open_is_found() {
    let settings =
        [("wal_level", "replica"), ("max_prepared_transactions", "4"), ("max_replication_slots", "2")];
    let Some(server) = server(&settings) else { return };
    server.sql("postgres", "CREATE ROLE app LOGIN").unwrap();
    server.sql("postgres", "CREATE DATABASE shop").unwrap();
    server
        .sql(
            "shop",
            "CREATE TABLE bare (what text); CREATE UNLOGGED TABLE quick (id int PRIMARY KEY);
             CREATE TABLE late (id int PRIMARY KEY DEFERRABLE);
             CREATE MATERIALIZED VIEW sums AS SELECT count(*) FROM bare;
             SELECT lo_create(4711);
             CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER t AFTER INSERT ON late FOR EACH ROW EXECUTE FUNCTION f();
             ALTER TABLE late ENABLE ALWAYS TRIGGER t;",
        )
        .unwrap();
    server.sql("shop", "BEGIN; INSERT INTO bare VALUES ('x'); PREPARE TRANSACTION 'half'").unwrap();
    server.sql("shop", "SELECT pg_create_physical_replication_slot('left over', true)").unwrap_err();
    server.sql("shop", "SELECT pg_create_physical_replication_slot('left_over', true)").unwrap();
    // A superuser at work.
    let mut busy = Command::new(rehome_testkit::postgres::programs().unwrap().join("psql"));
    busy.args(["-X", "-q", "-c", "SELECT pg_sleep(60)"]).arg(server.address("postgres", "shop"));
    let mut busy = busy.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let works = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'";
    while server.sql("shop", works).unwrap() != "1" {}
    let session = session(&server, "app", "shop", Side::Source).await;
    let assessed = postgres::assess(&session, Duration::ZERO).await.unwrap();
    assert_eq!(
        ids(&assessed.findings, Severity::Blocker),
        [
            "large-objects",
            "may-read",
            "may-replicate",
            "prepared-transactions",
            "replication-slots",
            "superuser-sessions",
            "unlogged",
            "wal-level"
        ],
        "{:?}",
        assessed.findings
    );
    assert_eq!(
        ids(&assessed.findings, Severity::Warning),
        [
            "cannot-see-sessions",
            "deferrable-key",
            "idle-slots",
            "materialized-views",
            "no-replica-identity",
            "replica-triggers",
            "role-passwords",
            "slot-keeps-log"
        ]
    );
    let remedies = assessed.findings.iter().filter(|finding| finding.severity != Severity::Info);
    assert!(remedies.clone().all(|finding| finding.remedy.is_some()), "each says what to do");
    let text = |id: &str| &assessed.findings.iter().find(|finding| finding.id == id).unwrap().text;
    assert!(
        text("no-replica-identity").ends_with("public.bare") && text("unlogged").ends_with("public.quick")
    );
    busy.kill().unwrap();
    busy.wait().unwrap();
}

#[tokio::test]
async fn what_cannot_be_reached_is_said_by_kind() {
    let Some(server) = server(&[]) else { return };
    let connect = |user: &'static str, database: &'static str| {
        let address = address(&server, user, database);
        async move { postgres::connect(&address, None, Side::Source).await.unwrap_err() }
    };
    let nobody = connect("nobody", "postgres").await;
    assert_eq!(nobody.kind, rehome_part::ErrorKind::Credentials, "{nobody}");
    let nowhere = connect("postgres", "nowhere").await;
    assert_eq!(nowhere.kind, rehome_part::ErrorKind::NotFound, "{nowhere}");
    let gone = server.address("postgres", "postgres");
    drop(server);
    let address = rehome_databases::Address::parse(&gone).unwrap();
    let gone = postgres::connect(&address, None, Side::Target).await.unwrap_err();
    assert_eq!(
        (gone.kind, gone.side, gone.is_temporary()),
        (rehome_part::ErrorKind::Network, Some(Side::Target), true)
    );
}
