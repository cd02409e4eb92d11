//! What `assess` finds on a real MariaDB, and what it does not invent.

use crate::mysql_world::{SECRET, World};
use crate::support::mariadb;
use rehome_databases::mysql::{self, Assessed, Session};
use rehome_databases::{Address, FenceMeans};
use rehome_part::{Finding, Severity, Side};
use rehome_testkit::mariadb::Mariadb;
use std::time::Duration;

fn ids(findings: &[Finding], severity: Severity) -> Vec<&str> {
    let mut ids: Vec<&str> =
        findings.iter().filter(|finding| finding.severity == severity).map(|finding| &*finding.id).collect();
    ids.sort_unstable();
    ids
}

async fn session(server: &Mariadb, user: &str, password: Option<&str>, side: Side) -> Session {
    let address = Address::parse(&server.address(user, "shop")).unwrap();
    mysql::connect(&address, password, side).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_can_move_has_nothing_in_the_way() {
    let Some(world) = World::start(FenceMeans::Writes, &[]) else { return };
    world.source.sql("shop", "CREATE TABLE t (id int PRIMARY KEY, w varchar(9)); INSERT INTO t SELECT seq, 'x' FROM seq_1_to_1000").unwrap();
    let mut source = session(&world.source, "mover", Some(SECRET), Side::Source).await;
    let busy = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.source.sql("shop", "INSERT INTO t SELECT seq, 'y' FROM seq_2001_to_2500").unwrap();
    };
    let (assessed, ()): (_, _) = tokio::join!(mysql::assess(&mut source, Duration::from_secs(1)), busy);
    let assessed: Assessed = assessed.unwrap();
    assert_eq!(ids(&assessed.findings, Severity::Blocker), Vec::<&str>::new(), "{:?}", assessed.findings);
    // root of a new server.
    assert_eq!(ids(&assessed.findings, Severity::Warning), ["bypass-accounts"], "{:?}", assessed.findings);
    assert_eq!((assessed.tables, assessed.rows, assessed.is_mariadb), (2, 1000, true));
    let watched = assessed.watched.unwrap();
    assert!(watched.rows_per_second > 100.0 && watched.log_bytes_per_second > 1000.0, "{watched:?}");
    let mut target = session(&world.target, "mover", Some(SECRET), Side::Target).await;
    let fits = mysql::fits(&assessed, &mut target).await.unwrap();
    assert_eq!(ids(&fits, Severity::Blocker), Vec::<&str>::new(), "{fits:?}");
    assert_eq!(ids(&fits, Severity::Info), ["target-empty"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_would_be_lost_or_stand_open_is_found() {
    let Some(server) =
        mariadb(&["--binlog-format=STATEMENT", "--log-bin-compress=ON", "--expire-logs-days=0.01"])
    else {
        return;
    };
    let Some(target) =
        mariadb(&["--gtid-strict-mode=ON", "--skip-log-bin", "--lower-case-table-names=1", "--read-only=ON"])
    else {
        return;
    };
    server
        .sql(
            "mysql",
            "CREATE DATABASE shop; CREATE DATABASE other; CREATE TABLE other.t (id int PRIMARY KEY); USE shop;
             CREATE TABLE plain (what text); CREATE TABLE old (id int PRIMARY KEY) ENGINE = Aria;
             CREATE TABLE past (id int PRIMARY KEY) WITH SYSTEM VERSIONING; CREATE SEQUENCE numbers;
             CREATE VIEW seen AS SELECT * FROM plain; CREATE EVENT tick ON SCHEDULE EVERY 1 DAY DO DELETE FROM plain;
             CREATE TRIGGER note AFTER INSERT ON plain FOR EACH ROW SET @n = 1;
             CREATE USER few@'%'; GRANT SELECT, SHOW VIEW, EVENT, TRIGGER, PROCESS, BINLOG MONITOR, SLAVE MONITOR ON *.* TO few@'%';
             XA START 'x'; INSERT INTO plain VALUES ('x'); XA END 'x'; XA PREPARE 'x'",
        )
        .unwrap();
    let mut source = session(&server, "few", None, Side::Source).await;
    let assessed = mysql::assess(&mut source, Duration::ZERO).await.unwrap();
    let blockers = ids(&assessed.findings, Severity::Blocker);
    let wanted = [
        "binlog-format",
        "log-bin-compress",
        "not-innodb",
        "privileges",
        "sequences",
        "system-versioned",
        "xa-prepared",
    ];
    assert_eq!(blockers, wanted, "{:#?}", assessed.findings);
    let warnings = ids(&assessed.findings, Severity::Warning);
    let wanted = ["binlog-retention", "bypass-accounts", "definers", "no-primary-key", "other-schemas"];
    assert_eq!(warnings, wanted, "{:#?}", assessed.findings);
    assert_eq!(ids(&assessed.findings, Severity::Info), ["ddl", "events", "triggers"]);
    assert!(assessed.findings.iter().all(|one| one.severity == Severity::Info || one.remedy.is_some()));

    target.sql("mysql", "CREATE DATABASE shop; CREATE TABLE shop.t (id int PRIMARY KEY)").unwrap();
    let address = Address::parse(&target.socket_address("root", "shop")).unwrap();
    let mut target = mysql::connect(&address, None, Side::Target).await.unwrap();
    let fits = mysql::fits(&assessed, &mut target).await.unwrap();
    let wanted = ["gtid-strict-mode", "is-read-only", "log-bin", "lower-case-table-names"];
    assert_eq!(ids(&fits, Severity::Blocker), wanted, "{fits:#?}");
    assert!(ids(&fits, Severity::Warning).contains(&"target-not-empty"));
}
