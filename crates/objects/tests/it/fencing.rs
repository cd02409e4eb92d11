//! Fences beyond the contract: uploads behind the fence, commands, hooks, probes; and what assess says.

use crate::hook::{Answer, Server};
use crate::support::{MIGRATION, World};
use rehome_objects::store::memory::{Fault, MemoryStore, Operation};
use rehome_objects::store::{Attributes, Store};
use rehome_objects::{FenceHook, FenceMeans};
use rehome_part::{Error, ErrorKind, Fence, Finding, Flow, Part, Position, Severity, Side};
use serde_json::{Value, json};
use std::time::Duration;

/// Somebody's policy, as they wrote it: no version, one statement without a list, spaces.
const FORMER: &str = r#"{ "Id" : "theirs",  "Statement": {"Sid":"theirs","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::1:user/shop"},"Action":"s3:*","Resource":"arn:aws:s3:::source/*"} }"#;

async fn policy(bucket: &MemoryStore) -> Option<String> {
    bucket.policy().await.unwrap()
}

/// The policy of `bucket` with one more statement, as an administrator adds it by hand.
async fn add_statement(bucket: &MemoryStore, sid: &str) {
    let mut edited: Value = serde_json::from_str(&policy(bucket).await.unwrap()).unwrap();
    let statement = json!({"Sid": sid, "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::source/*"});
    edited["Statement"].as_array_mut().unwrap().push(statement);
    bucket.set_policy(Some(&edited.to_string())).await.unwrap();
}

fn sids(policy: &str) -> Vec<String> {
    let policy: Value = serde_json::from_str(policy).unwrap();
    let statements = policy["Statement"].as_array().unwrap();
    statements.iter().map(|statement| statement["Sid"].as_str().unwrap().to_owned()).collect()
}

/// What is told of edits behind the fence.
async fn told_edits(part: &dyn Part) -> Vec<Finding> {
    let head = part.head(Flow::Forward).await.unwrap();
    let told = part.sweep(Flow::Forward, &head).await.unwrap();
    told.into_iter().filter(|finding| finding.id == "policy-edited-behind-fence").collect()
}

#[tokio::test]
async fn the_former_policy_comes_back_exactly() {
    for former in [Some(FORMER), None] {
        let world = World::new(true);
        let bucket = &world.source.bucket;
        bucket.set_policy(former).await.unwrap();
        world.part().fence(Side::Source).await.unwrap();
        assert_ne!(policy(bucket).await.as_deref(), former);
        // A fence that is set again after a kill must not take its own policy for the former one.
        world.part().fence(Side::Source).await.unwrap();
        world.part().unfence(Side::Source).await.unwrap();
        assert_eq!(policy(bucket).await.as_deref(), former);
        assert_eq!(told_edits(world.part().as_ref()).await, []);
    }
}

#[tokio::test]
async fn a_store_that_writes_policies_in_its_own_way_edits_nothing() {
    let world = World::new(true);
    let bucket = &world.source.bucket;
    bucket.set_policy(Some(FORMER)).await.unwrap();
    world.part().fence(Side::Source).await.unwrap();
    let mut given_back: Value = serde_json::from_str(&policy(bucket).await.unwrap()).unwrap();
    given_back["Statement"][1]["Principal"] = json!({ "AWS": ["*"] });
    bucket.set_policy(Some(&serde_json::to_string_pretty(&given_back).unwrap())).await.unwrap();
    world.part().unfence(Side::Source).await.unwrap();
    assert_eq!(policy(bucket).await.as_deref(), Some(FORMER));
    assert_eq!(told_edits(world.part().as_ref()).await, []);
}

#[tokio::test]
async fn an_edit_behind_the_fence_stays_and_is_told() {
    for (former, left) in [(Some(FORMER), vec!["theirs", "new"]), (None, vec!["new"])] {
        let world = World::new(true);
        let bucket = &world.source.bucket;
        bucket.set_policy(former).await.unwrap();
        world.part().fence(Side::Source).await.unwrap();
        add_statement(bucket, "new").await;
        // A switch that is taken back closes a side that is closed.
        world.part().fence(Side::Source).await.unwrap();
        assert_eq!(world.part().probe(Side::Source).await.unwrap(), Fence::ProvedClosed);
        // Killed after the policy was set and before that was noted.
        bucket.on_call(|call| match call.operation {
            Operation::SetPolicy => Fault::LoseAnswer(Error::permanent(ErrorKind::Other, "killed")),
            _ => Fault::Nothing,
        });
        world.part().unfence(Side::Source).await.unwrap_err();
        bucket.heal();
        let opened = policy(bucket).await.unwrap();
        assert_eq!(sids(&opened), left);
        world.part().unfence(Side::Source).await.unwrap();
        world.part().unfence(Side::Source).await.unwrap();
        assert_eq!(policy(bucket).await, Some(opened));
        assert_eq!(world.part().probe(Side::Source).await.unwrap(), Fence::Open);
        let told = told_edits(world.part().as_ref()).await;
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].severity, told[0].side), (Severity::Warning, Some(Side::Source)));
        assert!(told[0].text.contains("memory://source") && told[0].remedy.is_some(), "{told:?}");
    }
}

#[tokio::test]
async fn a_fence_that_somebody_lifted_is_left_lifted() {
    for lifted in [Some(r#"{ "Version":"2012-10-17", "Statement":[] }"#), None] {
        let world = World::new(true);
        let bucket = &world.source.bucket;
        bucket.set_policy(Some(FORMER)).await.unwrap();
        world.part().fence(Side::Source).await.unwrap();
        bucket.set_policy(lifted).await.unwrap();
        let set = bucket.calls(Operation::SetPolicy);
        world.part().unfence(Side::Source).await.unwrap();
        assert_eq!(bucket.calls(Operation::SetPolicy), set, "there was nothing to change");
        assert_eq!(policy(bucket).await.as_deref(), lifted);
        assert_eq!(told_edits(world.part().as_ref()).await.len(), 1);
    }
}

#[tokio::test]
async fn an_opening_that_was_killed_before_its_note_is_no_edit() {
    let world = World::new(true);
    let bucket = &world.source.bucket;
    bucket.set_policy(Some(FORMER)).await.unwrap();
    world.part().fence(Side::Source).await.unwrap();
    bucket.on_call(|call| match call.operation {
        Operation::SetPolicy => Fault::LoseAnswer(Error::permanent(ErrorKind::Other, "killed")),
        _ => Fault::Nothing,
    });
    world.part().unfence(Side::Source).await.unwrap_err();
    bucket.heal();
    assert_eq!(policy(bucket).await.as_deref(), Some(FORMER));
    world.part().unfence(Side::Source).await.unwrap();
    assert_eq!(policy(bucket).await.as_deref(), Some(FORMER));
    assert_eq!(told_edits(world.part().as_ref()).await, []);
}

#[tokio::test]
async fn a_fence_left_by_an_earlier_migration_does_not_come_back() {
    let bucket = {
        let earlier = World::new(true);
        earlier.target.bucket.set_policy(Some(FORMER)).await.unwrap();
        earlier.part().fence(Side::Target).await.unwrap();
        earlier.target.bucket
    };
    let mut world = World::new(true);
    world.target.bucket = bucket;
    world.part().fence(Side::Target).await.unwrap();
    world.part().unfence(Side::Target).await.unwrap();
    assert_eq!(sids(&policy(&world.target.bucket).await.unwrap()), ["theirs"]);
    assert_eq!(world.part().probe(Side::Target).await.unwrap(), Fence::Open);
    assert_eq!(told_edits(world.part().as_ref()).await, []);
}

#[tokio::test]
async fn what_warm_read_of_both_sides_is_used_once_and_by_its_side_alone() {
    let world = World::new(true);
    let part = world.part();
    let (source, target) = (&world.source.bucket, &world.target.bucket);
    let reads = || (source.calls(Operation::Policy), target.calls(Operation::Policy));
    target.set_policy(Some(FORMER)).await.unwrap();
    part.fence(Side::Target).await.unwrap();
    let cold = reads();
    part.warm(Flow::Forward).await.unwrap();
    let warm = reads();
    assert_eq!(warm, (cold.0 + 1, cold.1 + 1));
    // The switch itself reads neither.
    part.fence(Side::Source).await.unwrap();
    part.unfence(Side::Target).await.unwrap();
    assert_eq!(reads(), warm);
    assert_eq!((policy(source).await.is_some(), policy(target).await.as_deref()), (true, Some(FORMER)));

    // Afterwards what was read is old: an edit made since is seen by both, the fence and its undo.
    target.set_policy(None).await.unwrap();
    part.fence(Side::Target).await.unwrap();
    add_statement(source, "new").await;
    part.unfence(Side::Source).await.unwrap();
    part.unfence(Side::Target).await.unwrap();
    assert_eq!(policy(target).await, None);
    assert_eq!(sids(&policy(source).await.unwrap()), ["new"]);
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
    assert!(found.compressed_ratio.is_some_and(|ratio| ratio > 0.0 && ratio <= 1.0));
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
async fn assess_says_how_far_the_content_shrinks() {
    // Without feeds no rate of change is measured, which takes its time.
    let world = World::new(false);
    let ratio = || async { world.part().assess().await.unwrap().compressed_ratio };
    assert_eq!(ratio().await, None);
    world.source.bucket.seed("empty", "");
    assert_eq!(ratio().await, None, "nothing was read");
    // Larger than a sample.
    world.source.bucket.seed("text", "the same line again and again\n".repeat(100_000));
    assert!(ratio().await.is_some_and(|ratio| ratio > 0.0 && ratio < 0.1));
    let mut random = fastrand::Rng::with_seed(3);
    let noise: Vec<u8> = (0..2 << 20).map(|_| random.u8(..)).collect();
    world.source.bucket.seed("noise", noise);
    let half = ratio().await;
    assert!(half.is_some_and(|ratio| ratio > 0.45 && ratio < 0.55), "a megabyte of each: {half:?}");
}

#[tokio::test]
async fn positions_of_another_kind_are_never_covered() {
    let world = World::new(true);
    let part = world.part();
    assert!(!part.covers(&Position("pass:9".into()), &Position("feed:1".into())));
}
