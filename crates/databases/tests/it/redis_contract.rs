//! The contract of every part, kept by Redis on two real servers.

use crate::redis_world::World;
use rehome_databases::FenceMeans;
use rehome_part::contract::{Options, check};
use rehome_testkit::redis::is_here_or_skip;

async fn keeps_the_contract(means: FenceMeans) {
    if !is_here_or_skip() {
        return;
    }
    let rig = || async { World::new(means).unwrap() };
    check(rig, &Options::default()).await.unwrap_or_else(|why| panic!("{why}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_fence_for_writes() {
    keeps_the_contract(FenceMeans::Writes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_fence_for_logins() {
    keeps_the_contract(FenceMeans::Logins).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_fence() {
    keeps_the_contract(FenceMeans::None).await;
}
