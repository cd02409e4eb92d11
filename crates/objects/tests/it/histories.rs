//! Random histories of the application on the source, while the migration copies, follows, and is killed: both sides end
//! equal, and positions never go back.

use crate::support::{Quiet, World};
use proptest::prelude::*;
use rehome_objects::store::memory::{Fault, Operation};
use rehome_part::{Error, ErrorKind, Flow, Position};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    /// The follower (or the copy) dies and another one begins.
    Kill,
    Rest,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..12u8, any::<u8>()).prop_map(|(key, content)| Step::Put(key, content)),
        3 => (0..12u8).prop_map(Step::Delete),
        1 => Just(Step::Kill),
        2 => Just(Step::Rest),
    ]
}

const KEYS: [&str; 12] = ["a", "a b", "a/b", "a//b", "b%", "b+c", "ü", "z/", "0", "a/c", "aa", "~"];

async fn act(world: &World, step: &Step) {
    match step {
        // Often the same size, never quite the same content.
        Step::Put(key, content) => {
            world.source.write(KEYS[usize::from(*key)], &[*content, key ^ content]).await.unwrap();
        }
        Step::Delete(key) => world.source.delete(KEYS[usize::from(*key)]).await.unwrap(),
        Step::Kill | Step::Rest => tokio::time::sleep(Duration::from_micros(500)).await,
    }
}

async fn lives(before: &[Step], during: &[Step], while_following: &[Step], with_feeds: bool, seed: u64) {
    let mut world = World::new(with_feeds);
    world.settings.feed_wait = Duration::from_millis(20);
    let rng = Mutex::new(fastrand::Rng::with_seed(seed));
    world.target.bucket.on_call(move |call| {
        let error = Error::temporary(ErrorKind::Network, "reset");
        match rng.lock().unwrap().u8(0..24) {
            0 => Fault::Fail(error),
            1 if matches!(call.operation, Operation::Put | Operation::Delete) => Fault::LoseAnswer(error),
            2 => Fault::Delay(Duration::from_micros(300), Box::new(Fault::Nothing)),
            _ => Fault::Nothing,
        }
    });
    for step in before {
        act(&world, step).await;
    }
    // The copy runs beside the application, and is killed once.
    let part = world.part();
    let copy = part.copy(Flow::Forward, Arc::new(Quiet), CancellationToken::new());
    tokio::select! {
        _ = copy => {}
        () = async { for step in during { act(&world, step).await } } => {}
    }
    world.copy(Flow::Forward).await;

    let mut following = world.follow(Flow::Forward);
    let mut applied: Option<Position> = None;
    for step in while_following {
        act(&world, step).await;
        if matches!(step, Step::Kill) {
            following.task.abort();
            following = world.follow(Flow::Forward);
        }
        let now = following.state.borrow().applied.clone();
        if let (Some(before), Some(now)) = (&applied, &now) {
            assert!(part.covers(now, before), "went back from {before} to {now}");
        }
        applied = now.or(applied);
    }
    world.caught_up(&mut following, Flow::Forward).await;
    following.finish().await;
    world.assert_equal();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, fork: false, failure_persistence: None, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn both_sides_end_equal(
        before in proptest::collection::vec(step(), 0..20),
        during in proptest::collection::vec(step(), 0..12),
        while_following in proptest::collection::vec(step(), 0..40),
        with_feeds: bool,
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(lives(&before, &during, &while_following, with_feeds, seed));
    }
}
