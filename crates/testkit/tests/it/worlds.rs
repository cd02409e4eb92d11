//! Worlds of real processes: started, killed, started again; and the migration file they come with.

use rehome_spec::Migration;
use rehome_testkit::load::{Load, LoadConfig};
use rehome_testkit::oracle;
use rehome_testkit::world::{Profile, World, WorldConfig};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn config(folder: &Path) -> WorldConfig {
    let rehome = env!("CARGO_BIN_EXE_testkit-process").into();
    let profile = Profile { objects: 30, small_bytes: 2_000, large_objects: 1, large_bytes: 6 << 20 };
    WorldConfig { profile, ..WorldConfig::new(folder.join("world"), rehome, 30) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_is_killed_again_and_again_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::start(&config(folder.path())).await.unwrap();
    let load = Load::start(LoadConfig {
        gateway: world.source.shop,
        readers: 1,
        writers: 4,
        rate: 0.0,
        name: "k".into(),
        seed: 3,
        media: Arc::new(world.manifest.objects.clone()),
        log: folder.path().join("writes.log"),
        patience: Duration::from_secs(20),
    })
    .unwrap();
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    for round in 1..=4 {
        while load.counts().writes_acknowledged < round * 60 {
            ticks.tick().await;
        }
        let cloud = world.process("a-s3").unwrap();
        cloud.kill().await.unwrap();
        cloud.restart().await.unwrap();
    }
    let log = load.stop().await;
    assert!(log.counts.writes_unknown > 0, "some writes were under way");
    let evidence = oracle::gather(&world.source.bucket().unwrap(), &world.manifest, &[]).await.unwrap();
    let journals = [world.source.journal().unwrap(), world.target.journal().unwrap()];
    let verdict = oracle::judge(&[&log], &evidence, &journals, &["A".into(), "B".into()]);
    assert!(verdict.ok, "{:#?}", verdict.violations);
    assert!(journals[1].1.is_empty());
    let again = World::start(&config(folder.path())).await.unwrap_err();
    assert!(again.to_string().contains("already"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_migration_file_is_an_ordinary_one() {
    let folder = tempfile::tempdir().unwrap();
    let round_trip = Duration::from_millis(40);
    let world = World::start(&WorldConfig { round_trip, ..config(folder.path()) }).await.unwrap();
    let text = std::fs::read_to_string(&world.migration_file).unwrap();
    let loaded = Migration::load_with_warnings(&world.migration_file).unwrap();
    assert_eq!(loaded.render_warnings(false), "");
    let migration = loaded.migration;
    let objects = &migration.objects[0];
    assert_eq!(format!("{:?}", objects.fence.by), "Policy");
    assert_eq!(objects.source.endpoint, Some(format!("http://{}", world.source.s3)));
    assert_ne!(objects.target.endpoint, Some(format!("http://{}", world.target.s3)), "through the distance");
    assert_eq!(migration.services[0].listen, world.gateway.to_string());
    assert!(
        objects.application.is_some()
            && objects.changes.as_ref().is_some_and(|changes| changes.target.is_some())
    );
    let secret = &objects.target.secret_key.as_ref().unwrap().0;
    let secret = Path::new(secret.strip_prefix("file:").unwrap());
    assert_eq!(std::fs::read_to_string(secret).unwrap().len(), 40);
    assert_eq!(std::fs::metadata(secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!text.contains(&std::fs::read_to_string(secret).unwrap()));

    // What the file says can be reached, and the target only after a round trip or two.
    let shop: std::net::SocketAddr =
        migration.services[0].target.strip_prefix("http://").unwrap().parse().unwrap();
    let began = Instant::now();
    let far = rehome_testkit::s3::S3::new(shop, "healthz", objects_keys());
    let (status, head, _) =
        far.request(http::Method::GET, None, &[], &Default::default(), Default::default()).await.unwrap();
    assert_eq!((status.as_u16(), &head["shop-cloud"]), (200, &"B".parse().unwrap()));
    assert!(began.elapsed() >= 2 * round_trip);
    let mut names: Vec<&str> = world.processes.iter().map(|process| process.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["a-s3", "a-shop", "b-s3", "b-shop", "distance"]);
    let pids: Vec<u32> = world.processes.iter().filter_map(|process| process.pid()).collect();
    assert_eq!(pids.len(), 5);
    drop(world);
    for pid in pids {
        gone(pid).await;
    }
}

fn objects_keys() -> rehome_testkit::cloud::Keys {
    crate::common::keys("nobody")
}

/// Waits until a process is gone (or a zombie that waits for its parent to look).
async fn gone(pid: u32) {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    for _ in 0..1_000 {
        ticks.tick().await;
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if state.is_empty() || state.contains(") Z ") {
            return;
        }
    }
    panic!("process {pid} is still there");
}

#[tokio::test]
async fn a_configuration_that_others_may_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s3.json");
    std::fs::write(&path, "{}").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = rehome_testkit::process("s3", &path).await.unwrap_err();
    assert!(refused.to_string().contains("0600"), "{refused}");
}
