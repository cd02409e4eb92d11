//! A folder as a store: its contract, and what only file systems have (links, odd names, folders in the way).

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use rehome_objects::store::contract::{self, Options};
use rehome_objects::store::local::LocalStore;
use rehome_objects::store::{Attributes, Condition, Entry, Store};
use rehome_part::{ErrorKind, Result, Side};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

fn store(folder: &Path) -> LocalStore {
    LocalStore::new(folder, Some(Side::Target))
}

async fn put(store: &LocalStore, key: &str) -> Result<()> {
    store.put(key, &Attributes::default(), Bytes::from_static(b"content"), Condition::Always).await.map(drop)
}

async fn lines(store: &LocalStore) -> Vec<Result<Entry>> {
    store.list("", None).collect().await
}

#[tokio::test]
async fn a_folder_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let findings = contract::check_all(&store(folder.path()), &Options::default()).await;
    findings.verdict().unwrap();
    assert_eq!(findings.skipped, ["policies_come_back"]);
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
    assert_eq!(left, [".rehome~uploads"], "folders that are empty go away, temporary files too");
    store(folder.path()).remove().await.unwrap();
    assert!(!folder.path().exists());
    contract::check_missing_bucket(&store(folder.path())).await.unwrap();
    assert!(store(folder.path()).create().await.unwrap());
    assert!(!store(folder.path()).create().await.unwrap());
}

#[tokio::test]
async fn symbolic_links_are_told_and_never_followed() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "outside").unwrap();
    symlink(outside.path(), folder.path().join("linked-folder")).unwrap();
    symlink(outside.path().join("secret"), folder.path().join("linked-file")).unwrap();
    let store = store(folder.path());
    put(&store, "file").await.unwrap();
    let found = lines(&store).await;
    assert_eq!(found.len(), 3);
    assert_eq!(found[0].as_ref().unwrap().key, "file");
    for line in &found[1..] {
        let error = line.as_ref().unwrap_err();
        assert_eq!((error.kind, error.side), (ErrorKind::Unsupported, Some(Side::Target)));
        assert!(error.text.contains("symbolic link"), "{error}");
    }
    for key in ["linked-file", "linked-folder/secret"] {
        assert!(store.head(key).await.unwrap().is_none(), "{key}");
        assert!(store.get(key, None, None).await.unwrap().is_none(), "{key}");
        store.delete(key).await.unwrap();
    }
    assert_eq!(put(&store, "linked-folder/new").await.unwrap_err().kind, ErrorKind::Unsupported);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    // A file that replaces a link replaces the link, not what it points at.
    put(&store, "linked-file").await.unwrap();
    assert_eq!(std::fs::read_to_string(outside.path().join("secret")).unwrap(), "outside");
    assert!(std::fs::symlink_metadata(folder.path().join("linked-folder")).unwrap().is_symlink());
}

#[tokio::test]
async fn names_that_are_no_text_are_told_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(OsStr::from_bytes(b"bad-\xff")), "").unwrap();
    std::fs::create_dir(folder.path().join(OsStr::from_bytes(b"dir-\xfe"))).unwrap();
    let store = store(folder.path());
    put(&store, "zebra").await.unwrap();
    put(&store, "ant").await.unwrap();
    let found = lines(&store).await;
    let keys: Vec<_> = found.iter().filter_map(|line| Some(line.as_ref().ok()?.key.as_str())).collect();
    assert_eq!((keys, found.len()), (vec!["ant", "zebra"], 4));
    assert!(
        found.iter().filter_map(|line| line.as_ref().err()).all(|error| error.text.contains("not UTF-8"))
    );
}

#[tokio::test]
async fn a_file_and_a_folder_of_one_name_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    put(&store, "p").await.unwrap();
    assert_eq!(put(&store, "p/q").await.unwrap_err().kind, ErrorKind::Unsupported);
    put(&store, "d/e").await.unwrap();
    assert_eq!(put(&store, "d").await.unwrap_err().kind, ErrorKind::Unsupported);
    // Once the folder's last file is gone its name is free.
    store.delete("d/e").await.unwrap();
    put(&store, "d").await.unwrap();
    let keys: Vec<String> = store.list("", None).map_ok(|entry| entry.key).try_collect().await.unwrap();
    assert_eq!(keys, ["d", "p"]);
}

#[tokio::test]
async fn the_modified_time_is_kept_and_a_stale_one_is_not_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let user = [("mtime".to_owned(), "1700000000.250".to_owned())].into();
    let attributes = Attributes { user, ..Attributes::default() };
    store.put("k", &attributes, Bytes::new(), Condition::Always).await.unwrap();
    let meta = store.head("k").await.unwrap().unwrap();
    assert_eq!(meta.modified, Some(1_700_000_000_250));
    let before = meta.etag;
    std::fs::write(folder.path().join("k"), "somebody else wrote").unwrap();
    let meta = store.head("k").await.unwrap().unwrap();
    assert_ne!(meta.etag, before);
    assert_eq!(meta.attributes.user.get("mtime"), None);
}

#[tokio::test]
async fn concurrent_writes_and_deletes_of_one_folder_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let work = (0..64).map(|number| {
        let store = &store;
        async move {
            let key = format!("a/b/{number}");
            put(store, &key).await.unwrap();
            assert!(store.head(&key).await.unwrap().is_some());
            store.delete(&key).await.unwrap();
        }
    });
    futures::future::join_all(work).await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn an_upload_survives_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(folder.path());
    let id = first.begin_upload("big", &Attributes::default()).await.unwrap();
    let part = first.upload_part("big", &id, 1, Bytes::from_static(b"one ")).await.unwrap();
    drop(first);
    let second = store(folder.path());
    assert_eq!(second.open_uploads().await.unwrap()[0].id, id);
    assert_eq!(second.uploaded_parts("big", &id).await.unwrap(), [part]);
    second.upload_part("big", &id, 2, Bytes::from_static(b"2")).await.unwrap();
    second.upload_part("big", &id, 2, Bytes::from_static(b"two")).await.unwrap();
    let parts = second.uploaded_parts("big", &id).await.unwrap();
    assert_eq!(parts.len(), 2);
    second.complete_upload("big", &id, &parts).await.unwrap();
    assert_eq!(std::fs::read(folder.path().join("big")).unwrap(), b"one two");
    for bad in ["", "../x", "0123456789abcdef0123456789abcdeg"] {
        assert_eq!(second.uploaded_parts("big", bad).await.unwrap_err().kind, ErrorKind::NotFound);
        second.abort_upload("big", bad).await.unwrap();
    }
}
