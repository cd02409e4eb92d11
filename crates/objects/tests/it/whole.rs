//! From the migration file's table to a part that moves folders, and what doctor says of tables.

use crate::hook::{Answer, Server};
use crate::support::Quiet;
use rehome_objects::{doctor, part};
use rehome_part::{Fence, Finding, Flow, FollowState, Scope, Severity, Side};
use rehome_spec::{Changes, FenceBy, FencePlan, Hook, Objects, Secret, Store};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn no_secret(secret: &Secret) -> Result<String, String> {
    Err(format!("{} is not set", secret.0))
}

fn folder(path: &Path) -> Store {
    Store {
        url: format!("file://{}", path.display()),
        endpoint: None,
        region: None,
        access_key: None,
        secret_key: None,
        path_style: None,
        principal: None,
    }
}

fn table(source: &Path, target: &Path) -> Objects {
    Objects {
        name: "media".into(),
        source: folder(source),
        target: folder(target),
        application: None,
        changes: None,
        fence: FencePlan { by: FenceBy::None, ..FencePlan::default() },
        concurrency: Some(4),
    }
}

fn ids(findings: &[Finding]) -> Vec<(&str, Severity, Option<Side>)> {
    findings.iter().map(|finding| (finding.id.as_str(), finding.severity, finding.side)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_are_copied_followed_by_listing_and_verified() {
    let world = tempfile::tempdir().unwrap();
    let (source, target) = (world.path().join("a"), world.path().join("b"));
    std::fs::create_dir_all(source.join("deep/er")).unwrap();
    for (name, content) in [("one", "1"), ("deep/two words", "22"), ("deep/er/100%+", ""), ("deep.x", "333")]
    {
        std::fs::write(source.join(name), content).unwrap();
    }
    let part = part(&table(&source, &target), &world.path().join("state"), &no_secret).unwrap();
    part.prepare().await.unwrap();
    let summary = part.copy(Flow::Forward, Arc::new(Quiet), CancellationToken::new()).await.unwrap();
    assert_eq!((summary.objects, summary.bytes), (4, 6), "{summary:?}");
    assert_eq!(std::fs::read(target.join("deep/two words")).unwrap(), b"22");
    assert_eq!(part.probe(Side::Source).await.unwrap(), Fence::None);

    let (report, mut state) = watch::channel(FollowState::default());
    let stop = CancellationToken::new();
    let (follower, token) = (Arc::clone(&part), stop.clone());
    let task = tokio::spawn(async move { follower.follow(Flow::Forward, report, token).await });
    std::fs::write(source.join("one"), "changed").unwrap();
    std::fs::remove_file(source.join("deep.x")).unwrap();
    let head = part.head(Flow::Forward).await.unwrap();
    let applied =
        state.wait_for(|state| state.applied.as_ref().is_some_and(|applied| part.covers(applied, &head)));
    tokio::time::timeout(Duration::from_secs(30), applied).await.unwrap().unwrap();
    assert_eq!(std::fs::read(target.join("one")).unwrap(), b"changed");
    assert!(!target.join("deep.x").exists());
    stop.cancel();
    task.await.unwrap().unwrap();
    let verified = part.verify(Flow::Forward, Scope::Full, Arc::new(Quiet), CancellationToken::new());
    let verified = verified.await.unwrap();
    assert!(verified.is_equal() && verified.compared == 3, "{verified:?}");
}

#[tokio::test]
async fn doctor_says_what_is_weak_and_what_is_broken() {
    let world = tempfile::tempdir().unwrap();
    let (source, target) = (world.path().join("a"), world.path().join("b"));
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join("k"), "x").unwrap();
    let weak = doctor(&table(&source, &target), &no_secret).await;
    assert!(ids(&weak).contains(&("listing-only", Severity::Info, Some(Side::Source))), "{weak:?}");
    assert!(ids(&weak).contains(&("no-fence", Severity::Warning, Some(Side::Target))));
    assert!(ids(&weak).contains(&("target-missing", Severity::Info, Some(Side::Target))));
    assert!(!weak.iter().any(|finding| finding.severity == Severity::Blocker), "{weak:?}");
    let left: Vec<_> = std::fs::read_dir(&source).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["k"], "doctor leaves nothing");

    let server = Server::start(|_| Answer { status: 403, body: "no".into() }).await;
    let mut broken = table(&world.path().join("nowhere"), &target);
    broken.changes = Some(Changes { source: Hook { url: server.url("/"), token: None }, target: None });
    broken.fence.by = FenceBy::Policy;
    let found = doctor(&broken, &no_secret).await;
    for wanted in ["feed-refused", "bucket-missing", "principal-missing"] {
        let is_there = ids(&found).contains(&(wanted, Severity::Blocker, Some(Side::Source)));
        assert!(is_there, "{wanted}: {found:?}");
    }
    assert!(found.iter().all(|finding| finding.remedy.is_some()));
}

#[tokio::test]
async fn a_secret_that_cannot_be_had_names_its_side() {
    let world = tempfile::tempdir().unwrap();
    let mut table = table(&world.path().join("a"), &world.path().join("b"));
    table.changes = Some(Changes {
        source: Hook { url: "http://127.0.0.1:9/".into(), token: Some(Secret("env:NOT_THERE".into())) },
        target: None,
    });
    let error = part(&table, world.path(), &no_secret).unwrap_err();
    assert_eq!((error.kind, error.side), (rehome_part::ErrorKind::Credentials, Some(Side::Source)));
    assert!(error.text.contains("env:NOT_THERE"));
    let found = doctor(&table, &no_secret).await;
    assert_eq!(ids(&found), [("cannot-open", Severity::Blocker, Some(Side::Source))]);
}
