//! The store in memory keeps the contract, and bends it where a test asks.

use bytes::Bytes;
use futures::TryStreamExt;
use rehome_objects::store::contract::{self, Options};
use rehome_objects::store::memory::{Fault, MemoryStore, Operation};
use rehome_objects::store::{Attributes, Condition, Store};
use rehome_part::{Error, ErrorKind};

#[tokio::test]
async fn memory_keeps_the_contract() {
    let findings = contract::check_all(&MemoryStore::new("bucket"), &Options::default()).await;
    findings.verdict().unwrap();
    assert!(findings.skipped.is_empty(), "{:?}", findings.skipped);
}

#[tokio::test]
async fn memory_without_order_lists_everything_all_the_same() {
    let store = MemoryStore::new("bucket").with_capabilities(|able| able.sorted_listing = false);
    for number in 0..2_500 {
        store.seed(&format!("{number:04}"), "x");
    }
    let keys: Vec<String> = store.list("", None).map_ok(|entry| entry.key).try_collect().await.unwrap();
    assert_eq!((keys.len(), keys[0].as_str()), (2_500, "2499"));
    let rest: Vec<String> =
        store.list("", Some("0002")).map_ok(|entry| entry.key).try_collect().await.unwrap();
    assert_eq!(rest, ["0001", "0000"]);
    let empty = MemoryStore::new("empty").with_capabilities(|able| able.sorted_listing = false);
    contract::check_all(&empty, &Options::default()).await.verdict().unwrap();
}

#[tokio::test]
async fn a_fence_keeps_others_out_and_is_lifted_again() {
    let ours = MemoryStore::new("bucket").acting_as("arn:aws:iam::1:user/rehome");
    let app = ours.acting_as("app");
    let fence = ours.fence_policy(None, "arn:aws:iam::1:user/rehome").unwrap();
    ours.set_policy(Some(&fence)).await.unwrap();
    let put = async |store: &MemoryStore| {
        store.put("k", &Attributes::default(), Bytes::from_static(b"x"), Condition::Always).await
    };
    assert_eq!(put(&app).await.unwrap_err().kind, ErrorKind::Credentials);
    assert_eq!(app.delete("k").await.unwrap_err().kind, ErrorKind::Credentials);
    assert_eq!(app.begin_upload("k", &Attributes::default()).await.unwrap_err().kind, ErrorKind::Credentials);
    put(&ours).await.unwrap();
    assert!(app.get("k", None, None).await.unwrap().is_some());
    ours.set_policy(None).await.unwrap();
    put(&app).await.unwrap();
}

#[tokio::test]
async fn faults_happen_where_they_are_asked_for() {
    let store = MemoryStore::new("bucket");
    let put = async |key: &str| {
        store.put(key, &Attributes::default(), Bytes::from_static(b"content"), Condition::Always).await
    };
    let busy = Error::temporary(ErrorKind::Network, "busy");
    let told = busy.clone();
    store.on_call(move |call| match (call.operation, call.count) {
        (Operation::Put, 1) => Fault::Fail(told.clone()),
        (Operation::Put, 2) => Fault::LoseAnswer(told.clone()),
        (Operation::Put, 3) => Fault::Corrupt,
        (Operation::Get, 1) => Fault::Truncate(3),
        _ => Fault::Nothing,
    });
    assert_eq!(put("a").await.unwrap_err(), busy);
    assert_eq!(store.content("a"), None);
    assert_eq!(put("a").await.unwrap_err(), busy);
    assert_eq!(store.content("a").unwrap(), "content");
    put("a").await.unwrap();
    assert_ne!(store.content("a").unwrap(), "content");
    store.seed("a", "content");
    let (meta, body) = store.get("a", None, None).await.unwrap().unwrap();
    assert_eq!(meta.size, 7);
    assert_eq!(body.try_collect::<Vec<Bytes>>().await.unwrap_err().kind, ErrorKind::Network);
    store.heal();
    let (_, body) = store.get("a", None, None).await.unwrap().unwrap();
    assert_eq!(body.try_collect::<Vec<Bytes>>().await.unwrap().concat(), b"content");
    assert_eq!((store.calls(Operation::Put), store.calls(Operation::Get)), (3, 2));
    store.set_room(Some(10));
    assert_eq!(put("b").await.unwrap_err().kind, ErrorKind::Full);
    store.remove().await.unwrap_err();
    store.delete("a").await.unwrap();
    store.remove().await.unwrap();
    contract::check_missing_bucket(&store).await.unwrap();
}
