//! Followers beyond the contract: gaps in a feed, audits, strangers, trouble, sabotage.

use crate::support::{Quiet, World, eventually};
use rehome_objects::store::memory::{Fault, Operation};
use rehome_part::{Error, ErrorKind, Flow, Scope};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_forgotten_position_costs_a_listing_and_no_data() {
    let world = World::new(true);
    for n in 0..20 {
        world.source.write(&format!("k{n}"), b"one").await.unwrap();
    }
    world.copy(Flow::Forward).await;
    world.source.write("k1", b"two").await.unwrap();
    world.source.delete("k2").await.unwrap();
    world.source.write("new", b"n").await.unwrap();
    world.source.feed.forgotten.store(world.source.feed.newest(), Ordering::Relaxed);
    let mut following = world.follow(Flow::Forward);
    world.caught_up(&mut following, Flow::Forward).await;
    world.assert_equal();
    world.source.write("k3", b"three").await.unwrap();
    world.caught_up(&mut following, Flow::Forward).await;
    world.assert_equal();
    following.finish().await;
}

#[tokio::test]
async fn a_follower_without_a_start_begins_with_an_audit() {
    let world = World::new(true);
    world.source.write("before", b"x").await.unwrap();
    let mut following = world.follow(Flow::Forward);
    world.caught_up(&mut following, Flow::Forward).await;
    world.assert_equal();
    following.finish().await;
}

#[tokio::test]
async fn the_audit_finds_what_the_feed_did_not_tell() {
    let mut world = World::new(true);
    world.settings.relist_every = Duration::from_millis(50);
    world.source.write("told", b"x").await.unwrap();
    world.copy(Flow::Forward).await;
    let following = world.follow(Flow::Forward);
    world.source.bucket.seed("untold", "y");
    world.source.bucket.forget("told");
    eventually("the audit carries what was not told", || {
        world.target.bucket.content("untold").is_some() && world.target.bucket.content("told").is_none()
    })
    .await;
    following.finish().await;
}

#[tokio::test]
async fn what_was_on_the_target_before_us_stays_and_does_not_differ() {
    for with_feeds in [true, false] {
        let world = World::new(with_feeds);
        world.target.bucket.seed("stranger", "was here");
        world.target.bucket.seed("shared", "old");
        world.source.write("shared", b"new").await.unwrap();
        world.source.write("ours", b"o").await.unwrap();
        world.copy(Flow::Forward).await;
        let mut following = world.follow(Flow::Forward);
        world.source.delete("ours").await.unwrap();
        world.source.delete("shared").await.unwrap();
        // A delete of what was never there is told too.
        world.source.delete("stranger").await.unwrap();
        world.caught_up(&mut following, Flow::Forward).await;
        assert_eq!(world.target.bucket.keys(), ["stranger"]);
        following.finish().await;
        let verify = world.part();
        let verify = verify.verify(Flow::Forward, Scope::Full, Arc::new(Quiet), CancellationToken::new());
        assert!(verify.await.unwrap().is_equal());
    }
}

#[tokio::test]
async fn while_the_target_is_in_trouble_the_lag_is_unknown_and_nothing_is_lost() {
    let world = World::new(true);
    world.source.write("k", b"one").await.unwrap();
    world.copy(Flow::Forward).await;
    let mut following = world.follow(Flow::Forward);
    world.caught_up(&mut following, Flow::Forward).await;
    following.until(|state| state.lag_seconds == Some(0.0) && state.backlog == Some(0)).await;
    world.target.bucket.on_call(|call| match call.operation {
        Operation::Put => Fault::Fail(Error::temporary(ErrorKind::Network, "gone")),
        _ => Fault::Nothing,
    });
    world.source.write("k", b"two").await.unwrap();
    following.until(|state| state.lag_seconds.is_none() && state.backlog.is_none()).await;
    world.target.bucket.heal();
    world.caught_up(&mut following, Flow::Forward).await;
    let state = following.until(|state| state.lag_seconds == Some(0.0)).await;
    assert!(state.drain_seconds.is_some() && state.changes_applied >= 1);
    world.assert_equal();
    following.finish().await;
}

#[tokio::test]
async fn what_stays_broken_ends_the_follower_with_its_reason() {
    let world = World::new(true);
    world.copy(Flow::Forward).await;
    world.target.bucket.on_call(|call| match call.operation {
        Operation::Put => Fault::Fail(Error::permanent(ErrorKind::Credentials, "expired")),
        _ => Fault::Nothing,
    });
    world.source.write("k", b"x").await.unwrap();
    let following = world.follow(Flow::Forward);
    let error = following.task.await.unwrap().unwrap_err();
    assert_eq!((error.kind, error.side), (ErrorKind::Credentials, Some(rehome_part::Side::Target)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_workers_meet_on_one_key() {
    let world = World::new(true);
    world.copy(Flow::Forward).await;
    let busy: Arc<Mutex<Vec<String>>> = Arc::default();
    let met = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let (seen, meetings) = (Arc::clone(&busy), Arc::clone(&met));
    // A key is busy from its GET on the source to its next GET or the end of its PUT; two GETs without a PUT in between meet.
    world.source.bucket.on_call(move |call| {
        if call.operation == Operation::Get {
            let key = call.key.clone().unwrap_or_default();
            let mut busy = seen.lock().unwrap();
            if busy.contains(&key) {
                meetings.fetch_add(1, Ordering::Relaxed);
            }
            busy.push(key);
        }
        Fault::Nothing
    });
    let seen = Arc::clone(&busy);
    world.target.bucket.on_call(move |call| {
        if call.operation == Operation::Put {
            seen.lock().unwrap().retain(|key| Some(key) != call.key.as_ref());
        }
        Fault::Delay(Duration::from_micros(200), Box::new(Fault::Nothing))
    });
    let mut following = world.follow(Flow::Forward);
    for round in 0..200 {
        world.source.write(&format!("k{}", round % 3), format!("{round}").as_bytes()).await.unwrap();
    }
    world.caught_up(&mut following, Flow::Forward).await;
    assert_eq!(met.load(Ordering::Relaxed), 0);
    world.assert_equal();
    assert!(world.target.bucket.calls(Operation::Put) < 200, "changes of one key are joined");
    following.finish().await;
}

#[tokio::test]
async fn the_sabotage_drops_changes_and_verify_finds_it() {
    let mut world = World::new(true);
    world.settings.sabotage = vec!["drop-delta".into()];
    world.copy(Flow::Forward).await;
    let mut following = world.follow(Flow::Forward);
    for n in 0..30 {
        world.source.write(&format!("k{n}"), b"x").await.unwrap();
    }
    world.caught_up(&mut following, Flow::Forward).await;
    following.finish().await;
    let part = world.part();
    for scope in [Scope::Full, Scope::Since(rehome_part::Position("feed:0".into()))] {
        let found =
            part.verify(Flow::Forward, scope, Arc::new(Quiet), CancellationToken::new()).await.unwrap();
        assert!(found.differences_total >= 1, "{found:?}");
        assert_eq!(found.differences[0].id, "object-missing");
    }
}

#[tokio::test]
async fn where_no_store_reports_a_checksum_verify_reads_both_contents() {
    let mut world = World::new(true);
    for place in [&mut world.source, &mut world.target] {
        place.bucket = place.bucket.clone().with_capabilities(|c| c.etag_is_md5 = false);
        place.hide_checksums = true;
    }
    world.source.write("k", b"content").await.unwrap();
    world.source.write("same", b"content").await.unwrap();
    let summary = world.copy(Flow::Forward).await;
    assert!(summary.losses.iter().any(|loss| loss.id == "checksum-not-reported"), "it is said: {summary:?}");
    world.target.bucket.seed("k", "c0ntent");
    let part = world.part();
    let found =
        part.verify(Flow::Forward, Scope::Full, Arc::new(Quiet), CancellationToken::new()).await.unwrap();
    assert_eq!((found.differences_total, found.compared), (1, 2));
    assert_eq!(found.differences[0].id, "content-differs");
}

#[tokio::test]
async fn what_is_written_after_a_position_and_before_its_pass_is_compared() {
    let world = World::new(false);
    world.source.write("early", b"x").await.unwrap();
    world.copy(Flow::Forward).await;
    let part = world.part();
    let position = part.head(Flow::Forward).await.unwrap();
    world.source.write("late", b"y").await.unwrap();
    let written = std::time::SystemTime::now();
    let apart = Duration::from_millis(2); // times are told in milliseconds
    eventually("the clock moves on", || written.elapsed().is_ok_and(|elapsed| elapsed >= apart)).await;
    world.copy(Flow::Forward).await;
    world.target.bucket.seed("late", "z");
    let found = part.verify(Flow::Forward, Scope::Since(position), Arc::new(Quiet), CancellationToken::new());
    assert_eq!(found.await.unwrap().differences_total, 1);
}
