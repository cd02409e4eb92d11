//! What a copy and the replication behind it carry: every kind of value, and what a schema has besides tables.

use crate::mysql_verify::SHOP;
use crate::mysql_world::{World, copy, differences, follow};
use rehome_databases::FenceMeans;
use rehome_part::{ErrorKind, Flow, Part, Side};
use std::sync::Arc;

const MORE: &str = "
    CREATE TABLE parents (id int AUTO_INCREMENT PRIMARY KEY, name varchar(20) NOT NULL);
    CREATE TABLE children (id int AUTO_INCREMENT PRIMARY KEY, parent int NOT NULL, FOREIGN KEY (parent) REFERENCES parents (id) ON DELETE CASCADE);
    CREATE TABLE audit (id int AUTO_INCREMENT PRIMARY KEY, what varchar(50));
    INSERT INTO parents (name) SELECT CONCAT('p', seq) FROM seq_1_to_100;
    INSERT INTO children (parent) SELECT seq FROM seq_1_to_100;
    DELETE FROM parents WHERE id > 90;
    CREATE TRIGGER note AFTER INSERT ON parents FOR EACH ROW INSERT INTO audit (what) VALUES (CONCAT('made ', NEW.name));
    CREATE VIEW z_base AS SELECT id, name FROM parents WHERE id < 50;
    CREATE VIEW a_top AS SELECT COUNT(*) AS n FROM z_base;
    CREATE FUNCTION twice(n int) RETURNS int DETERMINISTIC RETURN n * 2;
    CREATE PROCEDURE add_parent(IN what varchar(20)) INSERT INTO parents (name) VALUES (what);
    CREATE EVENT tick ON SCHEDULE EVERY 1 HOUR DO INSERT INTO audit (what) VALUES ('tick');
    GRANT EXECUTE ON shop.* TO app@'%';";

fn made(world: &World) -> String {
    world.target.sql("shop", "SELECT COUNT(*), (SELECT n FROM a_top), twice(21) FROM parents").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_value_and_every_thing_arrives() {
    let Some(world) = World::start(FenceMeans::Writes, &[]) else { return };
    world.source.sql("shop", &format!("{SHOP} {MORE}")).unwrap();
    world.source.sql("mysql", "CREATE DATABASE other; CREATE TABLE other.t (id int PRIMARY KEY)").unwrap();
    let part = Arc::new(world.mysql_part());
    let summary = copy(&part).await;
    assert_eq!((summary.objects, summary.kept), (10_400 + 90 + 90, 0));
    assert_eq!(differences(&part).await, Vec::<String>::new());
    assert_eq!(made(&world), "90\t49\t42");
    let audit = world.target.sql("shop", "SELECT COUNT(*) FROM audit").unwrap();
    assert_eq!(audit, "0", "the trigger must not act on copied rows");
    let next = "SELECT TABLE_NAME, AUTO_INCREMENT FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'shop' AND TABLE_NAME = 'parents'";
    let ours = world.source.sql("shop", next).unwrap();
    assert_eq!(
        world.target.sql("shop", next).unwrap(),
        ours,
        "numbers that were given away are not given again"
    );
    let event = "SELECT STATUS FROM information_schema.EVENTS WHERE EVENT_SCHEMA = 'shop'";
    assert_eq!(world.target.sql("shop", event).unwrap(), "SLAVESIDE_DISABLED");

    // Followed: rows of each kind, the trigger's effect once, and nothing of other schemas.
    let mut following = follow(&part, Flow::Forward);
    following.caught_up().await;
    world
        .source
        .sql(
            "shop",
            "INSERT INTO orders (id, at, amount, ratio, exact, note, data, raw, body, kind, tags, bits, place, took, one)
                SELECT id + 100000, at, amount, ratio, exact, note, data, raw, body, kind, tags, bits, place, took, one FROM orders;
             UPDATE customers SET `Na``me` = 'Ærø'; DELETE FROM clicks WHERE page = 'page 3'; CALL add_parent('new');
             DELETE FROM parents WHERE id = 7; INSERT INTO rates VALUES (0.1); UPDATE marks SET d = '2026-03-03' WHERE n = 1.0;
             ALTER TABLE parents ADD COLUMN more int NULL; UPDATE parents SET more = 1 WHERE id = 5",
        )
        .unwrap();
    world
        .source
        .sql(
            "other",
            "INSERT INTO t VALUES (1); CREATE TABLE more (id int); DROP TABLE more; CREATE DATABASE third",
        )
        .unwrap();
    following.reaches(&part, Flow::Forward).await;
    assert_eq!(differences(&part).await, Vec::<String>::new());
    assert_eq!(world.target.sql("shop", "SELECT COUNT(*) FROM audit").unwrap(), "1");
    let schemas = world.target.sql("mysql", "SHOW DATABASES").unwrap();
    assert!(!schemas.contains("other") && !schemas.contains("third"), "{schemas}");
    let connected =
        "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE COMMAND = 'Binlog Dump' AND TIME >= 1";
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert_eq!(
        world.source.sql("mysql", connected).unwrap(),
        "1",
        "the replication is left in peace while it is well"
    );
    following.finish().await;

    part.fence(Side::Target).await.unwrap();
    part.fence(Side::Source).await.unwrap();
    part.seal(Flow::Forward).await.unwrap();
    let event_there = world.mover_sql(Side::Target, event).await;
    assert_eq!(event_there, ["ENABLED"]);
    part.unseal(Flow::Forward).await.unwrap();
    assert_eq!(world.mover_sql(Side::Target, event).await, ["SLAVESIDE_DISABLED"]);
    part.unfence(Side::Target).await.unwrap();
    let mut app = world.app(Side::Target).await.unwrap();
    mysql_async::prelude::Queryable::query_drop(&mut app, "CALL shop.add_parent('by the application')")
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_begins_again_carries_only_what_differs() {
    let Some(world) = World::start(FenceMeans::Writes, &[]) else { return };
    world.source.sql("shop", "CREATE TABLE big (id int PRIMARY KEY, what varchar(50)); INSERT INTO big SELECT seq, CONCAT('row ', seq) FROM seq_1_to_50000").unwrap();
    let part = world.mysql_part();
    part.prepare().await.unwrap();
    // As a copy that was killed leaves it: rows are there, and nobody wrote down that all of them are.
    world.target.sql("shop", "INSERT INTO big SELECT seq, CONCAT('row ', seq) FROM seq_1_to_35000; UPDATE big SET what = 'old' WHERE id = 7; INSERT INTO big VALUES (70000, 'gone')").unwrap();
    let summary = copy(&part).await;
    assert_eq!(summary.objects + summary.kept, 50_000);
    assert!(summary.kept >= 20_000, "{summary:?}");
    assert_eq!(differences(&part).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_end_are_waited_for_and_a_row_that_does_not_fit_is_not() {
    let Some(world) = World::start(FenceMeans::Writes, &[]) else { return };
    world
        .source
        .sql("shop", "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1)")
        .unwrap();
    let part = Arc::new(world.mysql_part());
    copy(&part).await;
    let mut following = follow(&part, Flow::Forward);
    following.caught_up().await;
    // Somebody stops it, and takes the password of our user away.
    world.target.sql("mysql", "STOP SLAVE 'rehome'").unwrap();
    world.source.sql("shop", "INSERT INTO t VALUES (2, 2)").unwrap();
    following.reaches(&part, Flow::Forward).await;
    // A row that is there already: no waiting mends it, and the words hold no values.
    world.target.sql("shop", "SET SESSION sql_log_bin = 0; INSERT INTO t VALUES (3, 33)").unwrap();
    world.source.sql("shop", "INSERT INTO t VALUES (3, 3)").unwrap();
    let error = following.ended().await;
    assert_eq!((error.kind, error.side), (ErrorKind::Corrupt, Some(Side::Target)));
    assert!(error.text.contains("1062") && !error.text.contains("33"), "{error}");
    assert_eq!(differences(&part).await, ["t (3) differs"]);
}
