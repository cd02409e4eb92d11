//! Weights, stickiness, read-your-writes, retries of reads.

use crate::support::*;
use rehome_gateway::control::Request as Control;
use rehome_part::Side;
use rehome_spec::Span;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_move_under_load_without_a_failed_request() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (stop, address) = (stop.clone(), gateway.address);
            tokio::spawn(async move {
                let mut caller = Caller::connect(address).await;
                let mut sides = HashMap::<String, u32>::new();
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let who = format!("user-{client}-{}", number % 50);
                    let got = caller.get("/", &[("authorization", &who)]).await;
                    assert_eq!(got.status, 200);
                    *sides.entry(got.side().to_owned()).or_default() += 1;
                }
                sides
            })
        })
        .collect();
    let served = || source.count("GET") + target.count("GET");
    let each = if long() { 20_000 } else { 400 };
    for percent in [0, 1, 5, 25, 50, 100, 50, 25, 5, 1, 0] {
        gateway.fresh().await;
        gateway.weight(percent).await;
        let before = served();
        eventually("requests at this weight", || async { served() >= before + each }).await;
    }
    // Weight 0 acts before the control call is answered: whatever was sent to the target by then is all it ever gets.
    let settled = target.count("GET");
    let before = served();
    eventually("requests after the last weight", || async { served() >= before + 400 }).await;
    stop.store(true, Ordering::Relaxed);
    let mut total = HashMap::<String, u32>::new();
    for client in clients {
        for (side, count) in client.await.unwrap() {
            *total.entry(side).or_default() += count;
        }
    }
    assert!(target.count("GET") <= settled + 8, "only requests already under way");
    assert_eq!(total["source"] as usize, source.count("GET"));
    assert_eq!(total["target"] as usize, target.count("GET"));
    let status = gateway.status().await;
    assert_eq!((status.services[0].source.failed, status.services[0].target.failed), (0, 0));
}

#[tokio::test]
async fn a_client_stays_on_its_side_and_only_moves_one_way() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let mut caller = gateway.caller().await;
    let mut sides: HashMap<String, String> = HashMap::new();
    gateway.fresh().await;
    for percent in [0, 10, 40, 80, 100] {
        gateway.weight(percent).await;
        for user in 0..60 {
            let who = format!("user-{user}");
            let first = caller.get("/", &[("authorization", &who)]).await.side().to_owned();
            let second = caller.get("/again", &[("authorization", &who)]).await.side().to_owned();
            assert_eq!(first, second, "sticky");
            let before = sides.insert(who, first.clone()).unwrap_or_default();
            assert!(before != "target" || first == "target", "raising the weight moved a client back");
        }
        let moved = sides.values().filter(|side| *side == "target").count();
        let expected = 60 * usize::from(percent) / 100;
        assert!(moved.abs_diff(expected) <= 14, "{moved} of 60 at {percent} %");
    }
}

#[tokio::test]
async fn who_wrote_reads_from_the_owner_until_the_write_arrived() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let mut caller = gateway.caller().await;
    let (alice, bob) = ([("authorization", "alice")], [("authorization", "bob")]);
    gateway.weight(100).await;
    assert_eq!(caller.get("/", &alice).await.side(), "source", "unknown freshness is no freshness");
    assert_eq!(gateway.status().await.services[0].weight_actual, 0);
    gateway.fresh().await;
    assert_eq!(caller.get("/", &alice).await.side(), "target");
    assert_eq!(caller.post("/orders", &alice, "1").await.side(), "source");
    assert_eq!(caller.get("/", &alice).await.side(), "source", "her own write is not on the target");
    assert_eq!(caller.get("/", &bob).await.side(), "target", "he wrote nothing");
    gateway.fresh().await;
    assert_eq!(caller.get("/", &alice).await.side(), "target");
    gateway.done(Control::Freshness { service: "api".into(), through: None, token: TOKEN }).await;
    assert_eq!(caller.get("/", &bob).await.side(), "source");
    let mut past = gateway.status().await.now;
    past.process += 1;
    gateway.done(Control::Freshness { service: "api".into(), through: Some(past), token: TOKEN }).await;
    assert_eq!(gateway.status().await.services[0].lag_ms, None, "a moment of another process says nothing");
}

#[tokio::test]
async fn a_new_cookie_does_not_lose_the_write_that_set_it() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let mut caller = gateway.caller().await;
    gateway.weight(100).await;
    gateway.fresh().await;
    caller.post("/login", &[("cookie", "sid=old")], "").await;
    assert_eq!(caller.get("/", &[("cookie", "sid=new")]).await.side(), "source");
    gateway.fresh().await;
    assert_eq!(caller.get("/", &[("cookie", "sid=new")]).await.side(), "target");
}

#[tokio::test]
async fn too_old_is_as_good_as_unknown() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let mut service = service(&source.url(), &target.url());
    service.max_staleness = Span::from_millis(150);
    let gateway = Gateway::start(service).await;
    let mut caller = gateway.caller().await;
    gateway.weight(100).await;
    gateway.fresh().await;
    eventually("the freshness ran out", || async { gateway.status().await.services[0].weight_actual == 0 })
        .await;
    let status = gateway.status().await;
    assert_eq!(status.services[0].weight_wanted, 100);
    assert!(status.services[0].lag_ms.unwrap() >= 150);
    assert_eq!(caller.get("/", &[]).await.side(), "source");
}

#[tokio::test]
async fn a_read_that_cannot_go_elsewhere_goes_to_the_owner() {
    let source = Upstream::start("source").await;
    let gateway = Gateway::start(service(&source.url(), &nowhere().await)).await;
    let mut caller = gateway.caller().await;
    gateway.weight(100).await;
    gateway.fresh().await;
    for method in ["GET", "HEAD"] {
        let got = caller.call(method, "/", &[], "").await;
        assert_eq!((got.status.as_u16(), got.side()), (200, "source"));
    }
    let status = gateway.status().await;
    assert_eq!(status.services[0].target.failed, 2);
    assert_eq!(status.services[0].refused, 0);
}

#[tokio::test]
async fn a_side_that_is_not_well_gets_no_reads() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let mut service = service(&source.url(), &target.url());
    service.health = Some("/broken".into());
    let gateway = Gateway::start(service).await;
    gateway.weight(100).await;
    eventually("health is known", || async {
        gateway.status().await.services[0].target.healthy == Some(false)
    })
    .await;
    gateway.fresh().await;
    assert_eq!(gateway.caller().await.get("/", &[]).await.side(), "source");
}

#[tokio::test]
async fn a_settled_switch_sends_every_read_to_the_new_owner() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.weight(50).await;
    gateway.fresh().await;
    gateway.done(Gateway::arm(1, 10_000)).await;
    gateway.hold(1).await;
    gateway.settle(2, Side::Target).await;
    let mut caller = gateway.caller().await;
    for user in 0..20 {
        assert_eq!(caller.get("/", &[("authorization", &format!("{user}"))]).await.side(), "target");
    }
    assert_eq!(gateway.status().await.services[0].weight_wanted, 0);
}
