//! Shop, load and checker together, without a gateway and with things in its place that behave badly.

use crate::common::{Cloud, config, keys};
use http::{HeaderMap, Method, StatusCode};
use rehome_testkit::cloud::read_mutations;
use rehome_testkit::load::{Load, LoadConfig, LoadLog, Operation, Outcome};
use rehome_testkit::oracle::{self, Breach, Verdict};
use rehome_testkit::s3::S3;
use rehome_testkit::shop::{self, RunningShop, ShopConfig};
use rehome_testkit::world::{Manifest, Profile, seed};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const PROFILE: Profile = Profile { objects: 40, small_bytes: 2_000, large_objects: 1, large_bytes: 200_000 };

struct Setup {
    folder: tempfile::TempDir,
    cloud: Cloud,
    shop: RunningShop,
    manifest: Manifest,
    _stop: tokio_util::sync::DropGuard,
}

async fn setup() -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(config(&folder.path().join("a"))).await;
    let manifest = seed(&cloud.app, PROFILE, 5).await.unwrap();
    let stop = CancellationToken::new();
    let shop = ShopConfig {
        cloud: "A".into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        s3: cloud.running.address,
        bucket: "shop".into(),
        keys: keys("app"),
        database: None,
        think_ms: 0,
        slow_ms: 0,
        outlive_parent: false,
    };
    let shop = shop::serve(shop, stop.clone()).await.unwrap();
    Setup { folder, cloud, shop, manifest, _stop: stop.drop_guard() }
}

fn traffic(gateway: SocketAddr, folder: &Path, manifest: &Manifest) -> LoadConfig {
    LoadConfig {
        gateway,
        readers: 2,
        writers: 4,
        rate: 0.0,
        name: "t".into(),
        seed: 1,
        media: Arc::new(manifest.objects.clone()),
        log: folder.join("writes.log"),
        patience: Duration::from_secs(20),
    }
}

/// Runs until so many writes were acknowledged.
async fn run_until(load: Load, acknowledged: u64) -> LoadLog {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    for _ in 0..6_000 {
        ticks.tick().await;
        if load.counts().writes_acknowledged >= acknowledged {
            return load.stop().await;
        }
    }
    panic!("no progress: {:?}", load.counts());
}

async fn verdict(setup: &Setup, log: &LoadLog) -> Verdict {
    let evidence = oracle::gather(&setup.cloud.migration, &setup.manifest, &[]).await.unwrap();
    let journal = read_mutations(&setup.folder.path().join("a")).unwrap();
    oracle::judge(&[log], &evidence, &[("A".into(), journal)], &["A".into()])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_shop_is_found_honest() {
    let setup = setup().await;
    let load = Load::start(traffic(setup.shop.address, setup.folder.path(), &setup.manifest)).unwrap();
    let log = run_until(load, 400).await;
    assert_eq!(log.counts.failed, 0, "{:#?}", log.failures);
    assert_eq!((&log.stale, &log.wrong), (&vec![], &vec![]));
    assert!(log.counts.by_cloud["A"] == log.counts.requests && log.counts.requests > 400);
    for operation in [Operation::Create, Operation::Update, Operation::Delete] {
        assert!(log.writes.iter().any(|write| write.operation == operation));
    }
    assert!(log.write_times.p50_ms > 0.0 && log.write_times.max_ms <= log.counts.longest_write_ms + 0.01);
    assert_eq!(log.longest_write_ms_by_client.len(), 4);
    let lines = std::fs::read_to_string(setup.folder.path().join("writes.log")).unwrap();
    assert_eq!(lines.lines().count(), log.writes.len());
    let verdict = verdict(&setup, &log).await;
    assert!(verdict.ok, "{:#?}", verdict.violations);
    assert_eq!(verdict.writes_acknowledged, log.counts.writes_acknowledged);
    assert_eq!(verdict.objects_compared, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_checker_must_find_in_a_real_bucket() {
    let setup = setup().await;
    let load = Load::start(traffic(setup.shop.address, setup.folder.path(), &setup.manifest)).unwrap();
    let log = run_until(load, 100).await;
    assert!(verdict(&setup, &log).await.ok);
    let owner = &setup.cloud.migration;
    let receipts = owner.list("receipts/").await.unwrap();
    owner.delete(&receipts[0].key).await.unwrap();
    owner.put(&format!("{}x", receipts[1].key), &HeaderMap::new(), "twice".into()).await.unwrap();
    owner.put("stray", &HeaderMap::new(), "x".into()).await.unwrap();
    let full: Vec<_> = setup.manifest.objects.iter().filter(|object| object.bytes > 0).cloned().collect();
    let [first, second, third] = [0, 1, 2].map(|index| full[index].clone());
    owner.delete(&first.key).await.unwrap();
    // Other content of the same size under the same headers, then the same content without its headers.
    let same: HeaderMap =
        second.headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    owner.put(&second.key, &same, vec![b'?'; second.bytes as usize].into()).await.unwrap();
    let (_, content) = owner.get(&third.key).await.unwrap().unwrap();
    owner.put(&third.key, &HeaderMap::new(), content).await.unwrap();
    let verdict = verdict(&setup, &log).await;
    let found = |breach: Breach, what: &str| {
        verdict.violations.iter().any(|found| found.breach == breach && found.what.contains(what))
    };
    assert_eq!((verdict.writes_lost, verdict.writes_doubled), (1, 1), "{:#?}", verdict.violations);
    assert!(found(Breach::Foreign, "stray"));
    for key in [&first.key, &second.key, &third.key] {
        assert!(found(Breach::Changed, key), "{key}: {:#?}", verdict.violations);
    }
    assert!(!verdict.ok);
}

/// Stands where the gateway would and passes every request on; with `twice` some creations are sent to the shop a
/// second time, with `cut` some answers of the shop are thrown away.
async fn bad_gateway(shop: SocketAddr, twice: bool, cut: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let turns = Arc::new(AtomicU32::new(0));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let turns = turns.clone();
            tokio::spawn(async move {
                while let Some(request) = message(&mut client).await {
                    let turn = turns.fetch_add(1, Ordering::Relaxed);
                    let answer = exchange(shop, &request).await;
                    if twice && request.starts_with(b"POST") && turn.is_multiple_of(5) {
                        exchange(shop, &request).await;
                    }
                    if cut && turn % 7 == 6 {
                        return;
                    }
                    client.write_all(&answer).await.unwrap();
                }
            });
        }
    });
    address
}

/// One request on a connection of its own.
async fn exchange(shop: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(shop).await.unwrap();
    stream.write_all(request).await.unwrap();
    message(&mut stream).await.expect("the shop answers")
}

/// A whole HTTP message with a known length; `None` at the end of the connection.
async fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        if bytes.len() >= end + 4 + length.unwrap_or(0) {
            return Some(bytes);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_repeats_is_found_out() {
    let setup = setup().await;
    let gateway = bad_gateway(setup.shop.address, true, false).await;
    let load =
        Load::start(LoadConfig { readers: 0, ..traffic(gateway, setup.folder.path(), &setup.manifest) })
            .unwrap();
    let log = run_until(load, 60).await;
    let verdict = verdict(&setup, &log).await;
    assert!(verdict.writes_doubled > 0 && verdict.writes_lost == 0, "{:#?}", verdict.violations);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_unknown_and_no_loss() {
    let setup = setup().await;
    let gateway = bad_gateway(setup.shop.address, false, true).await;
    let load =
        Load::start(LoadConfig { readers: 0, ..traffic(gateway, setup.folder.path(), &setup.manifest) })
            .unwrap();
    let log = run_until(load, 100).await;
    assert!(log.counts.writes_unknown > 0 && log.counts.failed > 0);
    assert!(log.failures.iter().all(|failure| failure.status.is_none()));
    let verdict = verdict(&setup, &log).await;
    assert!(verdict.ok, "{:#?}", verdict.violations);
    assert_eq!(verdict.writes_unknown, log.counts.writes_unknown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shop_behind_a_fence() {
    let setup = setup().await;
    let shop = S3::new(setup.shop.address, "orders", keys("app")); // only its plain HTTP is used
    let fence = crate::common::fence();
    let (status, ..) = setup
        .cloud
        .migration
        .request(Method::PUT, None, &[("policy", "")], &HeaderMap::new(), fence.into())
        .await
        .unwrap();
    assert!(status.is_success());
    let wish = r#"{"client":"c","number":1,"amount":2}"#;
    let (status, head, body) =
        shop.request(Method::POST, None, &[], &HeaderMap::new(), wish.into()).await.unwrap();
    assert_eq!((status, &head[shop::CLOUD_HEADER]), (StatusCode::SERVICE_UNAVAILABLE, &"A".parse().unwrap()));
    assert!(String::from_utf8_lossy(&body).contains("AccessDenied"));
    let (status, ..) =
        shop.request(Method::GET, None, &[("client", "c")], &HeaderMap::new(), "".into()).await.unwrap();
    assert_eq!(status, StatusCode::OK, "reads go on");
    for bad in ["{", r#"{"client":"../x","number":1,"amount":2}"#, r#"{"client":"c","number":1}"#] {
        let (status, ..) =
            shop.request(Method::POST, None, &[], &HeaderMap::new(), bad.into()).await.unwrap();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}");
    }
    let load = Load::start(LoadConfig {
        readers: 1,
        ..traffic(setup.shop.address, setup.folder.path(), &setup.manifest)
    })
    .unwrap();
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while load.counts().writes_unknown < 5 {
        ticks.tick().await;
    }
    let log = load.stop().await;
    assert!(log.writes.iter().all(|write| matches!(write.outcome, Outcome::Unknown { .. })));
    assert!(verdict(&setup, &log).await.ok);
}
