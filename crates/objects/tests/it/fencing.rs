//! Fences beyond the contract: uploads behind the fence, commands, hooks, probes; and what assess says.

use crate::hook::{Answer, Server};
use crate::support::{APPLICATION, MIGRATION, World};
use rehome_objects::store::{Attributes, Store};
use rehome_objects::{FenceHook, FenceMeans};
use rehome_part::{ErrorKind, Fence, Flow, Position, Severity, Side};
use std::time::Duration;

#[tokio::test]
async fn the_former_policy_comes_back_exactly() {
    let world = World::new(true);
    let former = format!(
        r#"{{ "Version":"2012-10-17",  "Statement":[{{"Sid":"theirs","Effect":"Allow","Principal":{{"AWS":"{APPLICATION}"}},"Action":"s3:*","Resource":"arn:aws:s3:::source/*"}}]}}"#
    );
    world.source.bucket.set_policy(Some(&former)).await.unwrap();
    world.part().fence(Side::Source).await.unwrap();
    assert_ne!(world.source.bucket.policy().await.unwrap().as_deref(), Some(former.as_str()));
    // A fence that is set again after a kill must not take its own policy for the former one.
    world.part().fence(Side::Source).await.unwrap();
    world.part().unfence(Side::Source).await.unwrap();
    assert_eq!(world.source.bucket.policy().await.unwrap().as_deref(), Some(former.as_str()));
}

#[tokio::test]
async fn uploads_of_others_are_aborted_behind_the_fence_and_told() {
    let world = World::new(true);
    let theirs = world.source.application();
    theirs.begin_upload("video", &Attributes::default()).await.unwrap();
    let part = world.part();
    part.fence(Side::Source).await.unwrap();
    assert!(world.source.bucket.open_uploads().await.unwrap().is_empty());
    let head = part.head(Flow::Forward).await.unwrap();
    let told = part.sweep(Flow::Forward, &head).await.unwrap();
    assert!(
        told.iter().any(|finding| finding.id == "upload-aborted" && finding.text.contains("video")),
        "{told:?}"
    );
}

#[tokio::test]
async fn without_a_principal_the_policy_fence_is_refused_with_a_hint() {
    let mut world = World::new(true);
    world.fence = FenceMeans::Policy { source_principal: None, target_principal: Some(MIGRATION.into()) };
    let error = world.part().fence(Side::Source).await.unwrap_err();
    assert_eq!((error.kind, error.side), (ErrorKind::Unsupported, Some(Side::Source)));
    assert!(error.hint.unwrap().contains("principal"));
    assert_eq!(world.source.bucket.policy().await.unwrap(), None);
}

#[tokio::test]
async fn a_command_fences_without_a_shell_and_within_its_time() {
    let mut world = World::new(true);
    let file = world.state.path().join("it's $HOME; fenced");
    let name = format!("{}-{{side}}", file.display());
    world.fence = FenceMeans::Command {
        close: vec!["touch".into(), name.clone()],
        open: vec!["rm".into(), name.clone()],
    };
    let part = world.part();
    part.fence(Side::Target).await.unwrap();
    let made = std::path::PathBuf::from(name.replace("{side}", "target"));
    assert!(made.exists());
    let mut stores = world.stores();
    stores.target_application = None;
    assert_eq!(world.part_of(stores.clone()).probe(Side::Target).await.unwrap(), Fence::Closed);
    part.unfence(Side::Target).await.unwrap();
    assert!(!made.exists());
    assert_eq!(world.part_of(stores).probe(Side::Target).await.unwrap(), Fence::Open);

    world.fence = FenceMeans::Command { close: vec!["ls".into(), "/does/not/exist".into()], open: vec![] };
    let error = world.part().fence(Side::Source).await.unwrap_err();
    assert!(error.text.contains("/does/not/exist"), "it says what the command said: {error}");
    world.settings.fence_limit = Duration::from_millis(50);
    world.fence = FenceMeans::Command { close: vec!["sleep".into(), "60".into()], open: vec![] };
    assert_eq!(world.part().fence(Side::Source).await.unwrap_err().kind, ErrorKind::Deadline);
}

#[tokio::test]
async fn a_hook_is_told_what_to_do_with_its_token() {
    let server = Server::start(|request| match request.token.as_deref() {
        Some("Bearer hush") => Answer { status: 200, body: "{}".into() },
        _ => Answer { status: 403, body: "who are you".into() },
    })
    .await;
    let mut world = World::new(true);
    let hook = |token: &str| Some(FenceHook::new(&server.url("/fence"), Some(token.into())).unwrap());
    world.fence = FenceMeans::Hook { source: hook("hush"), target: hook("wrong") };
    let part = world.part();
    part.fence(Side::Source).await.unwrap();
    part.unfence(Side::Source).await.unwrap();
    let bodies: Vec<serde_json::Value> =
        server.requests().iter().map(|request| serde_json::from_str(&request.body).unwrap()).collect();
    assert_eq!(
        bodies,
        [
            serde_json::json!({"fence": true, "side": "source"}),
            serde_json::json!({"fence": false, "side": "source"})
        ]
    );
    let error = part.fence(Side::Target).await.unwrap_err();
    assert_eq!((error.kind, error.side), (ErrorKind::Credentials, Some(Side::Target)));
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_probed_too_and_left_clean() {
    let mut world = World::new(true);
    world.source.bucket = world.source.bucket.clone().with_capabilities(|c| c.conditional_put = false);
    assert_eq!(world.part().probe(Side::Source).await.unwrap(), Fence::Open);
    assert!(world.source.bucket.keys().is_empty());
    world.part().fence(Side::Source).await.unwrap();
    assert_eq!(world.part().probe(Side::Source).await.unwrap(), Fence::ProvedClosed);
    assert!(world.source.bucket.keys().is_empty());
}

#[tokio::test]
async fn assess_names_what_stands_in_the_way() {
    let mut world = World::new(true);
    world.target.bucket = world.target.bucket.clone().with_capabilities(|c| {
        c.free_keys = false;
        c.max_object = 100;
    });
    for (key, content) in
        [("a", "x"), ("a-b", "x"), ("a/b", "x"), ("dir/", ""), ("both", "source"), ("fine/k", "x")]
    {
        world.source.bucket.seed(key, content);
    }
    world.source.bucket.seed("big", vec![0; 101]);
    world.target.bucket.seed("both", "target");
    world.target.bucket.seed("extra", "e");
    let found = world.part().assess().await.unwrap();
    assert_eq!((found.objects, found.bytes), (7, 111));
    assert!(found.changes_per_second.is_some() && found.copy_seconds.is_some());
    let of =
        |id: &str| found.findings.iter().find(|finding| finding.id == id).unwrap_or_else(|| panic!("{id}"));
    assert!(of("key-refused").text.starts_with("2 keys") && of("key-refused").text.contains("a/b, dir/"));
    assert!(of("too-large").text.contains("big"));
    assert!(of("target-differs").text.contains("both"));
    assert_eq!(of("target-differs").severity, Severity::Blocker);
    assert_eq!(of("target-extra").severity, Severity::Warning);
    world.source.bucket.remove().await.unwrap_err();
    for key in world.source.bucket.keys() {
        world.source.bucket.forget(&key);
    }
    world.source.bucket.remove().await.unwrap();
    let found = world.part().assess().await.unwrap();
    assert_eq!(found.findings[0].id, "source-missing");
}

#[tokio::test]
async fn positions_of_another_kind_are_never_covered() {
    let world = World::new(true);
    let part = world.part();
    assert!(!part.covers(&Position("pass:9".into()), &Position("feed:1".into())));
}
