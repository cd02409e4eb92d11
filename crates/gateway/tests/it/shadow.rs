//! Reads compared with the other side behind the client's back: what is a difference, what is noise, what is only late, and what
//! it may cost.

use crate::support::*;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rehome_gateway::control::{Request as Control, ShadowStatus};
use rehome_spec::{Service, Shadow, Span};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// A side that answers a path and the number of its request with what the test says.
async fn side(answer: impl Fn(&str, u64) -> Response<String> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (answer, count) = (Arc::new(answer), Arc::new(AtomicU64::new(0)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, count) = (answer.clone(), count.clone());
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let response =
                    answer(request.uri().path(), number).map(|body| Full::new(bytes::Bytes::from(body)));
                async move { Ok::<_, Infallible>(response) }
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(async move { server.serve_connection(TokioIo::new(stream), service).await });
        }
    });
    url
}

fn json(body: String) -> Response<String> {
    Response::builder().header("content-type", "application/json").body(body).unwrap()
}

fn all_of(service: Service) -> Service {
    let shadow = Shadow { share: 100, ignore: vec!["x-side".into()], ..Shadow::default() };
    Service { shadow, max_staleness: Span::from_millis(50), ..service }
}

async fn shadowed(source: &str, target: &str) -> Gateway {
    let gateway = Gateway::start(all_of(service(source, target))).await;
    gateway.done(Control::Shadow { service: "api".into(), on: true, token: TOKEN }).await;
    gateway
}

async fn shadow(gateway: &Gateway) -> ShadowStatus {
    gateway.status().await.services[0].shadow.clone()
}

/// All that were chosen have come to their end.
async fn settled(gateway: &Gateway) -> ShadowStatus {
    eventually("every pair came to its end", || async {
        let now = shadow(gateway).await;
        now.compared + now.missed.values().sum::<u64>() >= now.seen
    })
    .await;
    shadow(gateway).await
}

#[tokio::test]
async fn what_changes_with_every_look_is_no_difference() {
    let order = |_: &str, number: u64| json(format!(r#"{{"id":7,"at":{number},"price":3}}"#));
    let gateway =
        shadowed(&side(order).await, &side(move |path, number| order(path, number + 100)).await).await;
    gateway.fresh().await;
    let mut caller = gateway.caller().await;
    for number in 0..10 {
        assert_eq!(caller.get(&format!("/orders/{number}"), &[]).await.status, StatusCode::OK);
    }
    let status = settled(&gateway).await;
    assert_eq!((status.compared, status.different, status.noisy), (10, 0, 10), "{status:?}");
    assert!(status.owner_times.total() == 10 && status.other_times.total() == 10);
}

#[tokio::test]
async fn differences_are_ranked_by_endpoint_and_hold_no_value() {
    let source = |path: &str, _: u64| match path {
        "/login" => Response::builder().header("cache-control", "no-store").body("in".into()).unwrap(),
        _ => json(r#"{"id":7,"name":"alice","items":[{"price":1}]}"#.into()),
    };
    let target = |path: &str, _: u64| match path {
        "/login" => {
            Response::builder().status(302).header("location", "/secret-place").body("in".into()).unwrap()
        }
        "/orders/3" => json(r#"{"id":7,"name":"alice","items":[{"price":1}]}"#.into()),
        _ => json(r#"{"id":"7","name":"mallory","items":[{"price":1}]}"#.into()),
    };
    let gateway = shadowed(&side(source).await, &side(target).await).await;
    let mut caller = gateway.caller().await;
    // The other side has everything: what differs now, differs.
    let keep_fresh = async {
        loop {
            gateway.fresh().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ask = async {
        for path in ["/orders/1", "/orders/2", "/orders/3", "/login"] {
            caller.get(path, &[]).await;
        }
        settled(&gateway).await
    };
    let status = tokio::select! { status = ask => status, () = keep_fresh => unreachable!() };
    assert_eq!((status.compared, status.different), (4, 3), "{status:?}");
    let [orders, login] = &status.endpoints[..] else { panic!("{:?}", status.endpoints) };
    assert_eq!((orders.endpoint.as_str(), orders.compared, orders.different), ("GET /orders/{}", 3, 2));
    let places = |endpoint: &rehome_gateway::control::EndpointDifferences| {
        let mut places: Vec<_> = endpoint
            .places
            .iter()
            .map(|place| format!("{}: {} ({})", place.place, place.kind, place.count))
            .collect();
        places.sort();
        places
    };
    assert_eq!(places(orders), ["$.id: another type (2)", "$.name: another value (2)"]);
    assert_eq!(
        places(login),
        [
            "header cache-control: missing (1)",
            "header location: added (1)",
            "status 200 is 302: another value (1)"
        ]
    );
    let shown = serde_json::to_string(&status).unwrap();
    assert!(
        !shown.contains("mallory") && !shown.contains("secret-place"),
        "values are the users' own: {shown}"
    );
}

#[tokio::test]
async fn what_is_only_late_is_waited_for_and_what_is_unknown_is_said() {
    let price = Arc::new(AtomicU64::new(1));
    let behind = price.clone();
    let gateway = shadowed(
        &side(|_, _| json(r#"{"price":2}"#.into())).await,
        &side(move |_, _| json(format!(r#"{{"price":{}}}"#, behind.load(Ordering::Relaxed)))).await,
    )
    .await;
    let mut caller = gateway.caller().await;
    caller.get("/a", &[]).await;
    // The change arrives, and the gateway is told that it did.
    price.store(2, Ordering::Relaxed);
    gateway.fresh().await;
    eventually("it was compared again", || async {
        gateway.fresh().await;
        shadow(&gateway).await.compared == 1
    })
    .await;
    assert_eq!(shadow(&gateway).await.different, 0);
    // Nobody says how far the other side is: no verdict.
    price.store(3, Ordering::Relaxed);
    gateway.done(Control::Freshness { service: "api".into(), through: None, token: TOKEN }).await;
    caller.get("/a", &[]).await;
    let status = settled(&gateway).await;
    assert_eq!((status.compared, status.different, status.missed["stale"]), (1, 0, 1), "{status:?}");
}

#[tokio::test]
async fn only_reads_that_are_safe_to_ask_twice_are_and_nobody_is_counted_twice() {
    let (source, target) = (Upstream::start("same").await, Upstream::start("same").await);
    let gateway = shadowed(&source.url(), &target.url()).await;
    let mut caller = gateway.caller().await;
    caller.post("/orders", &[], "x").await;
    caller.call("OPTIONS", "/orders", &[], "").await;
    caller.call("GET", "/with-body", &[], "x").await;
    caller.get("/part", &[("range", "bytes=0-1")]).await;
    assert_eq!(shadow(&gateway).await.compared, 0);
    caller.get("/orders", &[]).await;
    caller.call("HEAD", "/orders", &[], "").await;
    eventually("both were compared", || async { shadow(&gateway).await.compared == 2 }).await;
    let seen = target.seen.lock().unwrap().clone();
    let asked: Vec<_> = seen.iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect();
    assert_eq!(asked, ["GET /orders", "HEAD /orders"]);
    assert!(seen.iter().all(|seen| seen.headers["rehome-shadow"] == "1"));
    assert!(source.seen.lock().unwrap().iter().all(|seen| !seen.headers.contains_key("rehome-shadow")));
    let service = &gateway.status().await.services[0];
    assert_eq!(
        (service.target.requests, service.source.requests),
        (0, 6),
        "it is no traffic of the target's"
    );
    assert_eq!(service.target.p50_ms, None);
}

#[tokio::test]
async fn a_target_that_hangs_costs_the_clients_nothing_and_is_counted() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    // Both wait on this path; the source is let go.
    source.let_go(1_000);
    let gateway = shadowed(&source.url(), &target.url()).await;
    let mut caller = gateway.caller().await;
    let began = Instant::now();
    for _ in 0..100 {
        assert_eq!(caller.get("/wait", &[]).await.side(), "source");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let status = shadow(&gateway).await;
    assert_eq!((status.seen, status.compared), (100, 0));
    assert!(status.missed["busy"] >= 60, "{status:?}");
    assert!(target.count("GET") <= 32);
}

#[tokio::test]
async fn large_answers_are_passed_over_and_a_switch_ends_it_all() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = shadowed(&source.url(), &target.url()).await;
    let mut caller = gateway.caller().await;
    assert_eq!(caller.get("/large", &[]).await.body.len(), 3 << 20);
    let status = settled(&gateway).await;
    assert_eq!((status.missed["large"], target.count("GET")), (1, 0));
    gateway.done(Gateway::arm(1, 60_000)).await;
    caller.get("/a", &[]).await;
    let status = shadow(&gateway).await;
    assert!(!status.on && status.seen == 1, "{status:?}");
}

#[tokio::test]
async fn the_share_is_the_share() {
    let (source, target) = (Upstream::start("same").await, Upstream::start("same").await);
    let mut plan = all_of(service(&source.url(), &target.url()));
    plan.shadow.share = 25;
    let gateway = Gateway::start(plan).await;
    gateway.done(Control::Shadow { service: "api".into(), on: true, token: TOKEN }).await;
    let mut caller = gateway.caller().await;
    for _ in 0..200 {
        caller.get("/a", &[]).await;
    }
    eventually("a quarter was chosen", || async {
        let status = shadow(&gateway).await;
        status.compared + status.missed.values().sum::<u64>() == 50
    })
    .await;
    assert_eq!(shadow(&gateway).await.seen, 200);
}
