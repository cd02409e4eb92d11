//! Ad hoc copies: what survives, what is noticed, what an interruption costs.

use crate::support::{Place, Quiet, quick_retry};
use bytes::Bytes;
use rehome_objects::store::Attributes;
use rehome_objects::store::memory::{Fault, MemoryStore, Operation};
use rehome_objects::{CopyOptions, CopySummary, copy};
use rehome_part::{Error, ErrorKind, Result, Side};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const MIB: usize = 1 << 20;

fn stores() -> (MemoryStore, MemoryStore) {
    (MemoryStore::new("a").on(Side::Source), MemoryStore::new("b").on(Side::Target))
}

fn options() -> CopyOptions {
    CopyOptions { retry: quick_retry(), ..CopyOptions::default() }
}

async fn run(
    source: &MemoryStore,
    target: &MemoryStore,
    options: CopyOptions,
    folder: &Path,
) -> Result<CopySummary> {
    let (source, target) = (Arc::new(source.clone()), Arc::new(target.clone()));
    copy(source, target, options, folder, Arc::new(Quiet), CancellationToken::new()).await
}

fn assert_same(source: &MemoryStore, target: &MemoryStore) {
    assert_eq!(source.keys(), target.keys());
    for key in source.keys() {
        assert!(source.content(&key) == target.content(&key), "{key} differs");
    }
}

fn noise(bytes: usize, seed: u64) -> Bytes {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut content = vec![0; bytes];
    rng.fill(&mut content);
    content.into()
}

#[tokio::test]
async fn odd_keys_and_attributes_survive_and_nothing_is_done_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = stores();
    let odd = [
        "a b",
        "100%",
        "a%20b",
        "a+b",
        "a//b",
        "/lead",
        "trail/",
        "ünï/日本",
        "a",
        "a/b",
        "q?x=1&y#z",
        "~\t\u{1}",
        "empty",
    ];
    for key in odd {
        source.seed(key, if key == "empty" { Bytes::new() } else { Bytes::from(key) });
    }
    let mut attributes = Attributes {
        content_type: Some("text/html; charset=utf-8".into()),
        content_encoding: Some("gzip".into()),
        content_language: Some("de".into()),
        content_disposition: Some("attachment".into()),
        cache_control: Some("max-age=60".into()),
        ..Attributes::default()
    };
    attributes.user.insert("owner".into(), "me".into());
    source.seed_with("page", "x", attributes.clone());
    attributes.user.insert("mtime".into(), "1234.5".into());
    source.seed_with("dated", "y", attributes.clone());

    let first = run(&source, &target, options(), folder.path()).await.unwrap();
    assert_eq!((first.objects, first.kept), (odd.len() as u64 + 2, 0));
    assert_same(&source, &target);
    let carried = target.attributes("page").unwrap();
    assert!(
        carried.user["mtime"].parse::<f64>().unwrap() > 1e9,
        "the modified time is kept as rclone keeps it"
    );
    assert_eq!(
        target.attributes("dated").unwrap().user["mtime"],
        "1234.5",
        "one that is there is not replaced"
    );
    assert_eq!(carried.cache_control.as_deref(), Some("max-age=60"));
    assert_eq!(carried.user["owner"], "me");
    assert_eq!((target.calls(Operation::Head), source.calls(Operation::Head)), (0, 0), "no HEAD per object");
    assert_eq!(source.calls(Operation::Get), odd.len() as u64 + 2);

    let second = run(&source, &target, options(), folder.path()).await.unwrap();
    assert_eq!((second.objects, second.kept), (0, odd.len() as u64 + 2));
    assert_eq!(source.calls(Operation::Get), odd.len() as u64 + 2, "a second run costs two listings");
    assert_eq!(target.calls(Operation::Head), 0);
}

#[tokio::test]
async fn a_change_of_the_same_size_is_noticed_without_any_checksum() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = stores();
    let (source, target) = (
        source.with_capabilities(|c| c.etag_is_md5 = false),
        target.with_capabilities(|c| c.etag_is_md5 = false),
    );
    source.seed("k", "one");
    source.seed("still", "same");
    run(&source, &target, options(), folder.path()).await.unwrap();
    source.seed("k", "two");
    let second = run(&source, &target, options(), folder.path()).await.unwrap();
    assert_eq!((second.objects, second.kept), (1, 1));
    assert_same(&source, &target);
    // And on the other side: whoever changed the target is corrected.
    target.seed("k", "2wo");
    assert_eq!(run(&source, &target, options(), folder.path()).await.unwrap().objects, 1);
    assert_same(&source, &target);
}

#[tokio::test]
async fn only_a_mirror_deletes_and_a_dry_run_says_the_same_and_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = stores();
    source.seed("new", "n");
    source.seed("both", "same");
    target.seed("both", "same");
    target.seed("extra", "e");
    let plain =
        run(&source, &target, CopyOptions { dry_run: true, ..options() }, folder.path()).await.unwrap();
    assert_eq!((plain.objects, plain.kept, plain.extra, plain.deleted), (1, 1, 1, 0));
    let mirror = CopyOptions { delete: true, ..options() };
    let dry =
        run(&source, &target, CopyOptions { dry_run: true, ..mirror.clone() }, folder.path()).await.unwrap();
    assert_eq!((dry.objects, dry.bytes, dry.kept, dry.deleted), (1, 1, 1, 1));
    assert_eq!(target.keys(), ["both", "extra"], "dry");
    let kept = run(&source, &target, options(), folder.path()).await.unwrap();
    assert_eq!((kept.objects, kept.extra, kept.deleted), (1, 1, 0));
    assert!(target.content("extra").is_some());
    let done = run(&source, &target, CopyOptions { verify: true, ..mirror }, folder.path()).await.unwrap();
    assert_eq!((done.deleted, done.extra), (1, 0));
    assert!(done.verification.unwrap().is_equal());
    assert_same(&source, &target);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_now_and_then_still_ends_equal() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = stores();
    for n in 0..300 {
        source.seed(&format!("k{n:04}"), noise(n, n as u64));
    }
    source.seed("large", noise(18 * MIB, 9));
    for (store, seed) in [(&source, 1), (&target, 2)] {
        let rng = Mutex::new(fastrand::Rng::with_seed(seed));
        store.on_call(move |call| {
            let error = Error::temporary(ErrorKind::Network, "reset");
            match rng.lock().unwrap().u8(0..20) {
                0 | 1 => Fault::Fail(error),
                2 if call.operation != Operation::BeginUpload => Fault::LoseAnswer(error),
                3 if call.operation == Operation::Get => Fault::Truncate(1),
                4 if matches!(call.operation, Operation::Put) && call.count % 3 == 0 => Fault::Corrupt,
                _ => Fault::Nothing,
            }
        });
    }
    let options =
        CopyOptions { retry: rehome_objects::RetryPolicy { attempts: 40, ..quick_retry() }, ..options() };
    let done = run(&source, &target, options, folder.path()).await.unwrap();
    assert_eq!(done.objects, 301);
    assert_same(&source, &target);
}

#[tokio::test]
async fn corruption_that_stays_is_an_error_that_names_the_side() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = stores();
    source.seed("k", "content");
    target.on_call(|call| if call.operation == Operation::Put { Fault::Corrupt } else { Fault::Nothing });
    let error = run(&source, &target, options(), folder.path()).await.unwrap_err();
    assert_eq!((error.kind, error.side), (ErrorKind::Corrupt, Some(Side::Target)));
    source.on_call(|call| if call.operation == Operation::Get { Fault::Corrupt } else { Fault::Nothing });
    target.heal();
    let error = run(&source, &target, options(), folder.path()).await.unwrap_err();
    assert_eq!((error.kind, error.side), (ErrorKind::Corrupt, Some(Side::Source)));
    source.heal();
    run(&source, &target, options(), folder.path()).await.unwrap();
    assert_same(&source, &target);
}

#[tokio::test]
async fn an_object_that_changes_or_vanishes_in_mid_copy() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = stores();
    source.seed("changes", noise(34 * MIB, 1));
    source.seed("vanishes", noise(34 * MIB, 2));
    source.seed("gone-small", "x");
    let fresh = noise(33 * MIB, 3);
    let (bucket, content) = (source.clone(), fresh.clone());
    let first = AtomicU64::new(0);
    source.on_call(move |call| {
        match (call.operation, call.key.as_deref()) {
            (Operation::Get, Some("changes")) if first.fetch_add(1, Ordering::SeqCst) == 1 => {
                bucket.seed("changes", content.clone());
            }
            (Operation::Get, Some("vanishes")) => bucket.forget("vanishes"),
            (Operation::Get, Some("gone-small")) => bucket.forget("gone-small"),
            _ => {}
        }
        Fault::Nothing
    });
    run(&source, &target, options(), folder.path()).await.unwrap();
    assert_eq!(target.keys(), ["changes"]);
    assert!(target.content("changes").unwrap() == fresh, "one version, the newer one");
    use rehome_objects::store::Store;
    assert!(target.open_uploads().await.unwrap().is_empty(), "nothing unfinished is left");
}

#[tokio::test]
async fn a_full_target_says_so_and_the_copy_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = stores();
    for n in 0..50 {
        source.seed(&format!("k{n}"), noise(1_000, n));
    }
    target.set_room(Some(20_500));
    let error = run(&source, &target, options(), folder.path()).await.unwrap_err();
    assert_eq!((error.kind, error.side), (ErrorKind::Full, Some(Side::Target)));
    let before = target.keys().len();
    assert!(before > 0 && before <= 20);
    target.set_room(None);
    let done = run(&source, &target, options(), folder.path()).await.unwrap();
    assert_eq!(
        (done.kept, done.objects),
        (before as u64, 50 - before as u64),
        "what was done is not done again"
    );
    assert_same(&source, &target);
}

#[tokio::test]
async fn what_the_target_cannot_keep_is_told_key_by_key_also_by_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = stores();
    let target = target.with_capabilities(|c| {
        c.user_metadata = false;
        c.free_keys = false;
    });
    let mut attributes = Attributes { not_carried: vec!["3 tags".into()], ..Attributes::default() };
    attributes.user.insert("owner".into(), "me".into());
    source.seed_with("tagged", "x", attributes);
    source.seed("folder/", "");
    source.seed("plain", "y");
    for _ in 0..2 {
        let done = run(&source, &target, options(), folder.path()).await.unwrap();
        let ids: Vec<&str> = done.losses.iter().map(|loss| loss.id.as_str()).collect();
        assert_eq!(ids, ["key-refused", "attributes-lost"]);
        assert!(done.losses[1].text.contains("tagged") && done.losses[1].text.contains("3 tags"));
        assert!(done.losses[1].text.contains("owner"));
    }
    assert_eq!(target.keys(), ["plain", "tagged"]);
    // Mended at its source, the loss is no more.
    source.seed("tagged", "plain now");
    source.forget("folder/");
    let done = run(&source, &target, CopyOptions { delete: true, ..options() }, folder.path()).await.unwrap();
    assert!(!done.losses.iter().any(|loss| loss.text.contains("tagged")), "{:?}", done.losses);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_it_ends_equal_and_finished_objects_are_not_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = stores();
    for n in 0..400 {
        source.seed(&format!("k{n:04}"), noise(100 + n, n as u64));
    }
    source.seed("large", noise(40 * MIB, 7));
    // Writes that had their answer, per key and part.
    let puts: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let count = Arc::clone(&puts);
    target.on_call(move |call| {
        if matches!(call.operation, Operation::Put | Operation::UploadPart) {
            *count.lock().unwrap().entry(call.key.clone().unwrap_or_default()).or_default() += 1;
            // Gives the killer something to interrupt.
            return Fault::Delay(Duration::from_micros(300), Box::new(Fault::Nothing));
        }
        Fault::Nothing
    });
    let mut rng = fastrand::Rng::with_seed(11);
    let options = CopyOptions { concurrency: 4, memory_bytes: 64 << 20, ..options() };
    let mut kills = 0;
    loop {
        let limit = Duration::from_millis(rng.u64(1..40) + kills * 20);
        match tokio::time::timeout(limit, run(&source, &target, options.clone(), folder.path())).await {
            Ok(done) => break drop(done.unwrap()),
            Err(_) => kills += 1,
        }
    }
    assert_same(&source, &target);
    assert!(kills > 0, "nothing was interrupted");
    let puts = puts.lock().unwrap();
    let again: u32 = puts.iter().filter(|(key, _)| *key != "large").map(|(_, n)| n - 1).sum();
    assert!(again as u64 <= kills * 4, "only what was under way ({again} for {kills} kills)");
    let parts = 5;
    assert!(u64::from(puts["large"]) <= parts + kills * 5, "{} part writes for {parts} parts", puts["large"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_within_its_budget() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (Place::new(MemoryStore::new("a")), Place::new(MemoryStore::new("b")));
    for n in 0..30 {
        source.bucket.seed(&format!("m{n}"), noise(MIB, n));
    }
    source.bucket.seed("large", noise(33 * MIB, 99));
    // One scale for both: what is read weighs until it is written.
    let target = Place { scale: Arc::clone(&source.scale), ..target };
    let options = CopyOptions { memory_bytes: 16 << 20, ..options() };
    let done = copy(
        source.migration(),
        target.migration(),
        options,
        folder.path(),
        Arc::new(Quiet),
        CancellationToken::new(),
    );
    assert_eq!(done.await.unwrap().objects, 31);
    assert_same(&source.bucket, &target.bucket);
    let most = source.scale.most.load(Ordering::SeqCst);
    assert!(most <= 16 << 20, "{most} bytes were held at once");
    assert!(most > 8 << 20, "several were under way at once");
}

#[tokio::test]
async fn wrong_credentials_and_a_missing_bucket_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = stores();
    source.seed("k", "x");
    source.on_call(|_| {
        Fault::Fail(Error::permanent(ErrorKind::Credentials, "signature does not match").on(Side::Source))
    });
    let error = run(&source, &target, options(), folder.path()).await.unwrap_err();
    assert_eq!((error.kind, error.side), (ErrorKind::Credentials, Some(Side::Source)));
    source.heal();
    let missing = MemoryStore::new("c");
    use rehome_objects::store::Store;
    missing.remove().await.unwrap();
    let error = run(&missing, &target, options(), folder.path()).await.unwrap_err();
    assert_eq!((error.kind, error.side), (ErrorKind::NotFound, Some(Side::Source)));
}

#[tokio::test]
async fn a_store_that_breaks_its_promise_of_order_is_sorted_here() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = stores();
    for n in 0..2_500 {
        source.seed(&format!("k{n}"), "x");
    }
    // Lists backwards and says that it does not.
    let mut place = Place::new(source.clone().with_capabilities(|c| c.sorted_listing = false));
    place.claims_order = true;
    let target_store = Arc::new(target.clone());
    let done = copy(
        place.migration(),
        target_store,
        options(),
        folder.path(),
        Arc::new(Quiet),
        CancellationToken::new(),
    );
    done.await.unwrap();
    assert_same(&source, &target);
}

#[tokio::test]
async fn a_copy_killed_right_after_its_last_act_is_known_to_be_done() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = stores();
    source.seed("large", noise(33 * MIB, 7));
    // The completion has its effect; then the process is gone before it can note anything.
    let (completed, wait) = (Arc::new(tokio::sync::Notify::new()), Duration::from_secs(3_600));
    let tell = Arc::clone(&completed);
    target.on_call(move |call| match call.operation {
        Operation::Head => {
            tell.notify_one();
            Fault::Delay(wait, Box::new(Fault::Nothing))
        }
        _ => Fault::Nothing,
    });
    tokio::select! {
        biased;
        () = completed.notified() => {}
        done = run(&source, &target, options(), folder.path()) => panic!("not killed: {done:?}"),
    }
    target.heal();
    assert_eq!(target.calls(Operation::UploadPart), 5);
    run(&source, &target, options(), folder.path()).await.unwrap();
    assert_same(&source, &target);
    assert_eq!(target.calls(Operation::UploadPart), 5, "no part is written again");
    let last = run(&source, &target, options(), folder.path()).await.unwrap();
    assert_eq!((last.objects, last.kept), (0, 1));
}
