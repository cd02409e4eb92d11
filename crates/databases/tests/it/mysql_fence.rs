//! The fence of a real server: whom it stops, whom it ends, and that it leaves no trace when it is taken down.

use crate::mysql_world::{World, copy};
use mysql_async::prelude::Queryable;
use rehome_databases::FenceMeans;
use rehome_part::contract::Rig;
use rehome_part::{Fence, Part, Side};
use std::time::{Duration, Instant};

async fn world(means: FenceMeans) -> Option<World> {
    let world = World::start(means, &["--event-scheduler=ON"])?;
    world
        .source
        .sql(
            "shop",
            "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT seq, 0 FROM seq_1_to_1000;
             CREATE USER boss@'%' IDENTIFIED BY 'boss'; GRANT ALL ON *.* TO boss@'%';
             CREATE USER idle@'%' IDENTIFIED BY 'idle' ACCOUNT LOCK;
             CREATE EVENT tick ON SCHEDULE EVERY 1 SECOND DO UPDATE shop.t SET n = n + 1 WHERE id = 1",
        )
        .unwrap();
    copy(&world.mysql_part()).await;
    Some(world)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_writes_behind_it_whatever_was_under_way() {
    let Some(world) = world(FenceMeans::Writes).await else { return };
    let before = world.guard(Side::Source).await;
    let mut open = world.app(Side::Source).await.unwrap();
    open.query_drop("START TRANSACTION").await.unwrap();
    open.query_drop("UPDATE shop.t SET n = 7 WHERE id = 2").await.unwrap();
    let mut boss = crate::mysql_world::as_user(&world.source, "boss", "boss").await.unwrap();
    let mut reader = world.app(Side::Source).await.unwrap();
    reader.query_drop("START TRANSACTION").await.unwrap();
    let _: Vec<i32> = reader.query("SELECT n FROM shop.t").await.unwrap();
    // A statement that takes its time, in the middle of it.
    let mut slow = world.app(Side::Source).await.unwrap();
    let slow =
        tokio::spawn(
            async move { slow.query_drop("UPDATE shop.t SET n = n + SLEEP(1) WHERE id > 500").await },
        );
    tokio::time::sleep(Duration::from_millis(100)).await;

    let begun = Instant::now();
    let part = world.mysql_part();
    part.fence(Side::Source).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(slow.await.unwrap().is_err());
    assert!(open.query_drop("COMMIT").await.is_err(), "an open transaction is ended");
    assert!(boss.query_drop("UPDATE shop.t SET n = 8 WHERE id = 3").await.is_err());
    assert!(crate::mysql_world::as_user(&world.source, "boss", "boss").await.is_err());
    let read: Vec<i32> = reader.query("SELECT n FROM shop.t WHERE id = 2").await.unwrap();
    assert_eq!(read, [0], "readers go on");
    assert_eq!(part.probe(Side::Source).await.unwrap(), Fence::ProvedClosed);
    let state = "SELECT SUM(n) FROM shop.t WHERE id > 1";
    let ticks = "SELECT n FROM shop.t WHERE id = 1";
    assert_eq!(world.mover_sql(Side::Source, state).await, ["0"]);
    let first = world.mover_sql(Side::Source, ticks).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(world.mover_sql(Side::Source, ticks).await, first, "events do not act behind the fence");

    // Another process takes it down, from what the first wrote down.
    world.mysql_part().unfence(Side::Source).await.unwrap();
    assert_eq!(world.guard(Side::Source).await, before);
    assert!(crate::mysql_world::as_user(&world.source, "boss", "boss").await.is_ok());
    assert!(
        crate::mysql_world::as_user(&world.source, "idle", "idle").await.is_err(),
        "who was locked stays locked"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_in_where_logins_are_closed() {
    let Some(world) = world(FenceMeans::Logins).await else { return };
    let before = world.guard(Side::Source).await;
    let mut reader = world.app(Side::Source).await.unwrap();
    let part = world.mysql_part();
    part.fence(Side::Source).await.unwrap();
    assert!(reader.query_drop("SELECT 1").await.is_err());
    assert!(world.app(Side::Source).await.is_err());
    assert_eq!(part.probe(Side::Source).await.unwrap(), Fence::ProvedClosed);
    // Killed between writing down and closing: what was there is not taken for what is to be there.
    world.mysql_part().fence(Side::Source).await.unwrap();
    world.mysql_part().unfence(Side::Source).await.unwrap();
    assert_eq!(world.guard(Side::Source).await, before);
    assert!(world.app(Side::Source).await.is_ok());
}
