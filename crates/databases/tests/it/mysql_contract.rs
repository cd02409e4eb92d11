//! The contract of every part, kept by two real MariaDB servers.

use crate::mysql_world::World;
use rehome_databases::FenceMeans;
use rehome_part::contract::{Options, check};

async fn keeps(means: FenceMeans, options: &'static [&'static str]) {
    if !rehome_testkit::mariadb::is_here() {
        return;
    }
    let make = || async { World::start(means, options).unwrap() };
    check(make, &Options::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_fence_for_writes() {
    keeps(FenceMeans::Writes, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_fence_for_logins() {
    keeps(FenceMeans::Logins, &["--event-scheduler=ON"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_replica_logs_nothing_of_what_it_receives() {
    keeps(FenceMeans::Writes, &["--log-slave-updates=OFF"]).await;
}
