//! The S3 server as clients see it: keys, conditions, checksums, uploads, policies, the feed, faults and restarts.

use crate::common::{Cloud, TOKEN, config, fence, headers};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use md5::{Digest, Md5};
use rehome_testkit::cloud::{Faults, Operation, Principal, S3Config, read_mutations};
use rehome_testkit::s3::S3;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

const ODD_KEYS: [&str; 16] = [
    "a",
    "a/b",
    "a/",
    "a//b",
    "/lead",
    "plus+and space",
    "per%25cent%",
    "ä/ö/中文.jpg",
    "q?x=1&y#z",
    "..",
    "../up",
    "tab\tkey",
    "quote\"'<>&",
    "dir/trailing/",
    "~tilde*(1)",
    "\u{10FFFF}",
];

async fn put(s3: &S3, key: &str, content: &str) -> String {
    s3.put(key, &HeaderMap::new(), Bytes::copy_from_slice(content.as_bytes())).await.unwrap()
}

/// One GET on the change feed: status and JSON.
async fn feed(address: SocketAddr, query: &str, token: &str) -> (u16, Value) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET /changes?{query} HTTP/1.1\r\nhost: feed\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (status, serde_json::from_str(body).unwrap())
}

#[tokio::test]
async fn odd_keys_survive_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(config(folder.path())).await;
    for key in ODD_KEYS {
        put(&cloud.app, key, key).await;
    }
    put(&cloud.app, "empty", "").await;
    for key in ODD_KEYS {
        let (_, content) = cloud.migration.get(key).await.unwrap().expect(key);
        assert_eq!(content, key.as_bytes(), "{key}");
    }
    assert_eq!(cloud.app.get("empty").await.unwrap().unwrap().1, Bytes::new());
    let listed: Vec<String> = cloud.app.list("").await.unwrap().into_iter().map(|line| line.key).collect();
    let mut expected: Vec<String> =
        ODD_KEYS.iter().map(ToString::to_string).chain(["empty".to_string()]).collect();
    expected.sort();
    assert_eq!(listed, expected, "byte order, every key once");
    assert!(cloud.app.head("a/b/").await.unwrap().is_none());
    assert!(cloud.app.head("per%cent%").await.unwrap().is_none());
    for key in ODD_KEYS {
        cloud.app.delete(key).await.unwrap();
    }
    assert_eq!(cloud.app.list("").await.unwrap().len(), 1);
    cloud.stop().await;
}

#[tokio::test]
async fn headers_metadata_ranges_and_conditions() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(config(folder.path())).await;
    let sent = headers(&[
        ("content-type", "text/html; charset=utf-8"),
        ("content-encoding", "identity"),
        ("content-language", "de"),
        ("content-disposition", "attachment; filename=\"x\""),
        ("cache-control", "max-age=60"),
        ("expires", "Wed, 21 Oct 2037 07:28:00 GMT"),
        ("x-amz-meta-mtime", "1700000000.123456789"),
        ("x-amz-meta-colour", "blue"),
    ]);
    let etag = cloud.app.put("page", &sent, Bytes::from_static(b"0123456789")).await.unwrap();
    let (got, _) = cloud.app.get("page").await.unwrap().unwrap();
    for (name, value) in &sent {
        assert_eq!(got.get(name), Some(value), "{name}");
    }
    assert_eq!(got["content-length"], "10");
    let ask = async |method: Method, pairs: &[(&'static str, &str)]| {
        cloud.app.request(method, Some("page"), &[], &headers(pairs), Bytes::new()).await.unwrap()
    };
    let (status, part, content) = ask(Method::GET, &[("range", "bytes=2-4")]).await;
    assert_eq!(
        (status, &content[..], &part["content-range"]),
        (StatusCode::PARTIAL_CONTENT, &b"234"[..], &"bytes 2-4/10".parse().unwrap())
    );
    assert_eq!(&ask(Method::GET, &[("range", "bytes=-3")]).await.2[..], b"789");
    assert_eq!(ask(Method::GET, &[("range", "bytes=10-")]).await.0, StatusCode::RANGE_NOT_SATISFIABLE);
    let quoted = format!("\"{etag}\"");
    assert_eq!(ask(Method::GET, &[("if-match", "\"other\"")]).await.0, StatusCode::PRECONDITION_FAILED);
    assert_eq!(ask(Method::GET, &[("if-match", &quoted)]).await.0, StatusCode::OK);
    assert_eq!(ask(Method::GET, &[("if-none-match", &quoted)]).await.0, StatusCode::NOT_MODIFIED);
    assert_eq!(ask(Method::PUT, &[("if-none-match", "*")]).await.0, StatusCode::PRECONDITION_FAILED);
    assert_eq!(ask(Method::PUT, &[("if-match", "\"impossible\"")]).await.0, StatusCode::PRECONDITION_FAILED);
    assert_eq!(ask(Method::PUT, &[("if-match", &quoted)]).await.0, StatusCode::OK);
    assert_eq!(cloud.app.get("page").await.unwrap().unwrap().1, Bytes::new());
    let absent = cloud.app.put("nothing", &headers(&[("if-match", "*")]), Bytes::new()).await.unwrap_err();
    assert_eq!(absent.code(), Some("PreconditionFailed"));
    cloud.stop().await;
}

#[tokio::test]
async fn checksums_are_checked_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(config(folder.path())).await;
    let try_put = async |pairs: &[(&'static str, &str)]| {
        let outcome = cloud.app.put("sum", &headers(pairs), Bytes::from_static(b"123456789")).await;
        outcome.map_err(|failure| failure.code().unwrap_or_default().to_string())
    };
    // The check values of the catalogue of CRCs for "123456789".
    assert!(try_put(&[("x-amz-checksum-crc64nvme", "rosUhgp5mIg=")]).await.is_ok());
    let head = cloud.app.head("sum").await.unwrap().unwrap();
    assert_eq!(head["x-amz-checksum-crc64nvme"], "rosUhgp5mIg=");
    assert!(try_put(&[("x-amz-checksum-crc32c", "4waSgw==")]).await.is_ok());
    let head = cloud.app.head("sum").await.unwrap().unwrap();
    assert_eq!(head["x-amz-checksum-crc32c"], "4waSgw==");
    assert!(!head.contains_key("x-amz-checksum-crc64nvme"), "the client chose another");
    assert!(try_put(&[("content-md5", "JfnnlDI7RTiF9RgfG2JNCw==")]).await.is_ok());
    let bad = "BadDigest".to_string();
    assert_eq!(try_put(&[("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=")]).await, Err(bad.clone()));
    assert_eq!(try_put(&[("x-amz-checksum-crc32c", "AAAAAA==")]).await, Err(bad.clone()));
    assert_eq!(try_put(&[("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")]).await, Err(bad));
    assert_eq!(try_put(&[("content-md5", "nonsense")]).await, Err("InvalidDigest".into()));
    cloud.stop().await;
}

/// Between two tags of an XML answer.
fn between<'a>(text: &'a str, tag: &str) -> &'a str {
    text.split_once(&format!("<{tag}>")).unwrap().1.split_once("</").unwrap().0
}

async fn upload(s3: &S3, key: &str, parts: &[Bytes]) -> (String, Vec<String>) {
    let none = HeaderMap::new();
    let (_, _, begun) =
        s3.request(Method::POST, Some(key), &[("uploads", "")], &none, Bytes::new()).await.unwrap();
    let id = between(std::str::from_utf8(&begun).unwrap(), "UploadId").to_string();
    let mut tags = Vec::new();
    for (number, part) in (1..).zip(parts) {
        let query = [("partNumber", &*format!("{number}")), ("uploadId", &*id)];
        let (status, head, _) =
            s3.request(Method::PUT, Some(key), &query, &none, part.clone()).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        tags.push(head["etag"].to_str().unwrap().to_string());
    }
    (id, tags)
}

async fn complete(s3: &S3, key: &str, id: &str, tags: &[String], extra: &HeaderMap) -> (StatusCode, String) {
    let parts: String = (1..)
        .zip(tags)
        .map(|(number, tag)| format!("<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>"))
        .collect();
    let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
    let (status, _, answer) =
        s3.request(Method::POST, Some(key), &[("uploadId", id)], extra, body.into()).await.unwrap();
    (status, String::from_utf8(answer.to_vec()).unwrap())
}

#[tokio::test]
async fn multipart_uploads() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(config(folder.path())).await;
    let parts =
        [Bytes::from(vec![7; 5 << 20]), Bytes::from(vec![8; (5 << 20) + 3]), Bytes::from_static(b"end")];
    let whole: Vec<u8> = parts.concat();
    let (id, tags) = upload(&cloud.app, "big", &parts).await;
    let (_, _, listed) = cloud
        .app
        .request(
            Method::GET,
            Some("big"),
            &[("uploadId", &id), ("max-parts", "2")],
            &HeaderMap::new(),
            Bytes::new(),
        )
        .await
        .unwrap();
    let listed = String::from_utf8(listed.to_vec()).unwrap();
    assert_eq!(listed.matches("<Part>").count(), 2);
    assert_eq!(between(&listed, "IsTruncated"), "true");
    let (_, _, open) = cloud
        .app
        .request(Method::GET, None, &[("uploads", "")], &HeaderMap::new(), Bytes::new())
        .await
        .unwrap();
    assert!(String::from_utf8(open.to_vec()).unwrap().contains(&id));
    assert!(cloud.app.head("big").await.unwrap().is_none(), "not there before it is complete");

    let mut wrong = tags.clone();
    wrong[1] = "\"00000000000000000000000000000000\"".into();
    assert!(complete(&cloud.app, "big", &id, &wrong, &HeaderMap::new()).await.1.contains("InvalidPart"));
    let bad_sum = headers(&[("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=")]);
    assert!(complete(&cloud.app, "big", &id, &tags, &bad_sum).await.1.contains("BadDigest"));
    let (status, answer) = complete(&cloud.app, "big", &id, &tags, &HeaderMap::new()).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let mut digest = Md5::new();
    parts.iter().for_each(|part| digest.update(Md5::digest(part)));
    let etag: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(answer.contains(&format!("{etag}-3")), "{answer}");
    let (_, content) = cloud.app.get("big").await.unwrap().unwrap();
    assert!(content == whole);
    let head = cloud.app.head("big").await.unwrap().unwrap();
    let crc = crc_fast::crc64_nvme(&whole).to_be_bytes();
    use base64::Engine as _;
    assert_eq!(head["x-amz-checksum-crc64nvme"], base64::prelude::BASE64_STANDARD.encode(crc));
    let range = headers(&[("range", &format!("bytes={}-{}", (5 << 20) - 1, 5 << 20))]);
    let (_, _, across) =
        cloud.app.request(Method::GET, Some("big"), &[], &range, Bytes::new()).await.unwrap();
    assert_eq!(&across[..], [7, 8]);

    let (small, tags) =
        upload(&cloud.app, "small", &[Bytes::from_static(b"x"), Bytes::from_static(b"y")]).await;
    assert!(
        complete(&cloud.app, "small", &small, &tags, &HeaderMap::new()).await.1.contains("EntityTooSmall")
    );
    let (status, ..) = cloud
        .app
        .request(Method::DELETE, Some("small"), &[("uploadId", &small)], &HeaderMap::new(), Bytes::new())
        .await
        .unwrap();
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert!(complete(&cloud.app, "small", &small, &tags, &HeaderMap::new()).await.1.contains("NoSuchUpload"));
    cloud.stop().await;
}

#[tokio::test]
async fn buckets_batch_delete_and_bad_credentials() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(config(folder.path())).await;
    let other = S3::new(cloud.running.address, "other", crate::common::keys("app"));
    let none = HeaderMap::new();
    let bucket = async |method: Method, query: &[(&str, &str)], body: &str| {
        let (status, _, text) =
            other.request(method, None, query, &none, Bytes::copy_from_slice(body.as_bytes())).await.unwrap();
        (status.as_u16(), String::from_utf8(text.to_vec()).unwrap())
    };
    assert_eq!(bucket(Method::HEAD, &[], "").await.0, 404);
    assert_eq!(bucket(Method::PUT, &[], "").await.0, 200);
    assert!(bucket(Method::PUT, &[], "").await.1.contains("BucketAlreadyOwnedByYou"));
    for key in ["x", "y+", "z"] {
        put(&other, key, key).await;
    }
    assert!(bucket(Method::DELETE, &[], "").await.1.contains("BucketNotEmpty"));
    let body = "<Delete><Object><Key>x</Key></Object><Object><Key>y+</Key></Object><Object><Key>absent</Key></Object></Delete>";
    let digest = base64_md5(body.as_bytes());
    let (_, _, text) = other
        .request(
            Method::POST,
            None,
            &[("delete", "")],
            &headers(&[("content-md5", &digest)]),
            Bytes::from_static(body.as_bytes()),
        )
        .await
        .unwrap();
    assert_eq!(String::from_utf8(text.to_vec()).unwrap().matches("<Deleted>").count(), 3);
    assert_eq!(other.list("").await.unwrap().len(), 1);
    other.delete("z").await.unwrap();
    assert_eq!(bucket(Method::DELETE, &[], "").await.0, 204);
    assert_eq!(bucket(Method::GET, &[("list-type", "2")], "").await.0, 404);

    let mut wrong = crate::common::keys("app");
    wrong.secret_key = "guess".into();
    let refused =
        S3::new(cloud.running.address, "shop", wrong).put("k", &none, Bytes::new()).await.unwrap_err();
    assert_eq!(refused.code(), Some("SignatureDoesNotMatch"));
    let refused =
        S3::new(cloud.running.address, "shop", crate::common::keys("nobody")).get("k").await.unwrap_err();
    assert_eq!(refused.code(), Some("InvalidAccessKeyId"));
    cloud.stop().await;
}

fn base64_md5(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(Md5::digest(bytes))
}

async fn set_policy(s3: &S3, text: Option<String>) {
    let method = if text.is_some() { Method::PUT } else { Method::DELETE };
    let (status, _, body) = s3
        .request(method, None, &[("policy", "")], &HeaderMap::new(), text.unwrap_or_default().into())
        .await
        .unwrap();
    assert!(status.is_success(), "{body:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_has_no_late_writers() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(config(folder.path())).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (app, stop) =
                (S3::new(cloud.running.address, "shop", crate::common::keys("app")), stop.clone());
            tokio::spawn(async move {
                let (mut acknowledged, mut refused) = (0u64, 0u64);
                while !stop.load(Ordering::Relaxed) {
                    match app
                        .put(
                            &format!("w{writer}/{acknowledged}"),
                            &HeaderMap::new(),
                            Bytes::from_static(b"x"),
                        )
                        .await
                    {
                        Ok(_) => acknowledged += 1,
                        Err(failure) => {
                            assert_eq!(failure.code(), Some("AccessDenied"));
                            refused += 1;
                        }
                    }
                }
                (acknowledged, refused)
            })
        })
        .collect();
    // Some writes first, then the fence in the midst of them.
    while cloud.migration.list("").await.unwrap().len() < 50 {}
    for _ in 0..3 {
        set_policy(&cloud.migration, Some(fence())).await;
        let (_, head) = feed(cloud.running.events_address, "head=true", TOKEN).await;
        // Fenced: the head stays where it is although everybody goes on writing.
        for _ in 0..12 {
            assert!(cloud.app.put("late", &HeaderMap::new(), Bytes::new()).await.is_err());
            let multi = cloud
                .app
                .request(Method::POST, Some("late"), &[("uploads", "")], &HeaderMap::new(), Bytes::new())
                .await
                .unwrap();
            assert_eq!(multi.0, StatusCode::FORBIDDEN);
        }
        assert_eq!(feed(cloud.running.events_address, "head=true", TOKEN).await.1, head);
        put(&cloud.migration, ".marker", "m").await;
        set_policy(&cloud.migration, None).await;
        put(&cloud.app, "open again", "x").await;
    }
    set_policy(&cloud.migration, Some(fence())).await;
    let kept = cloud.migration.list("w").await.unwrap().len() as u64;
    stop.store(true, Ordering::Relaxed);
    let (mut acknowledged, mut refused) = (0, 0);
    for writer in writers {
        let counts = writer.await.unwrap();
        acknowledged += counts.0;
        refused += counts.1;
    }
    assert_eq!(kept, acknowledged, "what was acknowledged, and nothing after the last fence");
    assert!(refused > 0);
    // The probe of a fence: refused for who asks, not for the condition.
    let probe =
        cloud.app.put("probe", &headers(&[("if-match", "\"impossible\"")]), Bytes::new()).await.unwrap_err();
    assert_eq!(probe.code(), Some("AccessDenied"));
    let (status, _, text) = cloud
        .app
        .request(Method::GET, None, &[("policy", "")], &HeaderMap::new(), Bytes::new())
        .await
        .unwrap();
    assert_eq!((status, text), (StatusCode::OK, Bytes::from(fence())));
    let (status, ..) = cloud
        .app
        .request(Method::PUT, None, &[("policy", "")], &HeaderMap::new(), Bytes::from_static(b"{}"))
        .await
        .unwrap();
    assert_eq!(status, StatusCode::BAD_REQUEST);
    cloud.stop().await;
}

/// Passes a connection on, but of what the client sends only the first bytes until told to go on.
async fn stalling(to: SocketAddr, first: usize) -> (SocketAddr, Arc<Notify>, Arc<Notify>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stalled, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (reached, wait) = (stalled.clone(), go_on.clone());
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = tokio::net::TcpStream::connect(to).await.unwrap();
        let mut begin = vec![0; first];
        client.read_exact(&mut begin).await.unwrap();
        server.write_all(&begin).await.unwrap();
        reached.notify_one();
        wait.notified().await;
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    (address, stalled, go_on)
}

/// Files of content, also of writes that are not committed.
fn pieces(cloud: &std::path::Path) -> usize {
    let shards = std::fs::read_dir(cloud.join("content")).into_iter().flatten().flatten();
    shards.map(|shard| std::fs::read_dir(shard.path()).into_iter().flatten().count()).sum()
}

/// The server has let a write in: sent bytes alone may still lie in its socket, and a fence would refuse them unread.
async fn being_received(cloud: &std::path::Path, before: usize) {
    let begun = async {
        while pieces(cloud) <= before {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), begun).await.expect("the write is received");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_began_before_the_fence_does_not_end_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(config(folder.path())).await;
    let body = Bytes::from(vec![1; 3 << 20]);
    let (id, _) = upload(&cloud.app, "upload", &[]).await;
    let part = [("partNumber", "1"), ("uploadId", &id)];
    for (key, query) in [("slow", &[][..]), ("upload", &part[..])] {
        let (address, stalled, go_on) = stalling(cloud.running.address, 1 << 20).await;
        let before = pieces(folder.path());
        let slow = S3::new(address, "shop", crate::common::keys("app"));
        let (query, content): (Vec<_>, _) =
            (query.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect(), body.clone());
        let write = tokio::spawn(async move {
            let query: Vec<(&str, &str)> = query.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            slow.request(Method::PUT, Some(key), &query, &HeaderMap::new(), content).await
        });
        stalled.notified().await;
        being_received(folder.path(), before).await;
        set_policy(&cloud.migration, Some(fence())).await;
        let (_, head) = feed(cloud.running.events_address, "head=true", TOKEN).await;
        go_on.notify_one();
        let (status, _, text) = write.await.unwrap().unwrap();
        assert_eq!(status, StatusCode::FORBIDDEN, "{text:?}");
        assert_eq!(feed(cloud.running.events_address, "head=true", TOKEN).await.1, head);
        set_policy(&cloud.migration, None).await;
    }
    assert!(cloud.app.list("").await.unwrap().is_empty());
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_feed_is_complete_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(config(folder.path())).await;
    let events = cloud.running.events_address;
    assert_eq!(feed(events, "head=true", "wrong").await.0, 401);
    assert_eq!(feed(events, "after=9", TOKEN).await.0, 410, "a position from another life");
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let s3 = if writer % 2 == 0 { cloud.app.clone() } else { cloud.migration.clone() };
            tokio::spawn(async move {
                for number in 0..60 {
                    put(&s3, &format!("{writer}/{number}"), "x").await;
                    if number % 3 == 0 {
                        s3.delete(&format!("{writer}/{number}")).await.unwrap();
                        s3.delete("never there").await.unwrap();
                    }
                }
            })
        })
        .collect();
    let expected = 4 * (60 + 20);
    let (mut after, mut seen) = (0u64, Vec::new());
    while seen.len() < expected {
        let (status, answer) = feed(events, &format!("after={after}&limit=7&wait_ms=5000"), TOKEN).await;
        assert_eq!(status, 200);
        for change in answer["changes"].as_array().unwrap() {
            let position: u64 = change["position"].as_str().unwrap().parse().unwrap();
            assert!(position > after, "positions only grow");
            after = position;
            seen.push((change["key"].as_str().unwrap().to_string(), change["kind"] == "delete"));
        }
        after = answer["position"].as_str().unwrap().parse().unwrap();
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let kept: BTreeSet<String> = cloud.app.list("").await.unwrap().into_iter().map(|line| line.key).collect();
    let mut replayed = BTreeSet::new();
    for (key, deleted) in seen {
        if deleted {
            replayed.remove(&key)
        } else {
            replayed.insert(key)
        };
    }
    assert_eq!(replayed, kept);
    let mutations = read_mutations(folder.path()).unwrap();
    assert_eq!(mutations.len(), expected);
    assert!(
        mutations
            .windows(2)
            .all(|pair| pair[0].nanos <= pair[1].nanos && pair[0].position < pair[1].position)
    );
    assert!(mutations.iter().any(
        |mutation| mutation.principal == Principal::Migration && mutation.operation == Operation::Delete
    ));

    // Nothing new: the answer waits, and comes as soon as there is something.
    let waiting =
        tokio::spawn(async move { feed(events, &format!("after={after}&wait_ms=30000"), TOKEN).await });
    tokio::task::yield_now().await;
    put(&cloud.app, "wake", "x").await;
    let (_, woken) =
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("woken at once").unwrap();
    assert_eq!(woken["changes"][0]["key"], "wake");
    cloud.stop().await;
}

#[tokio::test]
async fn a_position_that_is_no_longer_kept() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(S3Config { feed_keep: 3, ..config(folder.path()) }).await;
    for number in 0..5 {
        put(&cloud.app, &format!("{number}"), "x").await;
    }
    assert_eq!(feed(cloud.running.events_address, "after=1", TOKEN).await.0, 410);
    let (status, answer) = feed(cloud.running.events_address, "after=2", TOKEN).await;
    assert_eq!((status, answer["changes"].as_array().unwrap().len()), (200, 3));
    cloud.stop().await;
}

#[tokio::test]
async fn a_restart_finds_everything_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(config(folder.path())).await;
    let sent = headers(&[
        ("content-type", "image/png"),
        ("x-amz-meta-a", "b"),
        ("expires", "Wed, 21 Oct 2037 07:28:00 GMT"),
    ]);
    cloud.app.put("kept+%25", &sent, Bytes::from_static(b"content")).await.unwrap();
    put(&cloud.app, "replaced", "old").await;
    put(&cloud.app, "replaced", "new").await;
    put(&cloud.app, "gone", "x").await;
    cloud.app.delete("gone").await.unwrap();
    let copied = headers(&[("x-amz-copy-source", "/shop/replaced")]);
    let (status, ..) =
        cloud.app.request(Method::PUT, Some("copy"), &[], &copied, Bytes::new()).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    let (id, tags) = upload(&cloud.app, "upload", &[Bytes::from_static(b"part")]).await;
    set_policy(&cloud.migration, Some(fence())).await;
    let before = (cloud.app.list("").await.unwrap(), cloud.app.head("kept+%25").await.unwrap());
    let (_, head) = feed(cloud.running.events_address, "head=true", TOKEN).await;
    cloud.stop().await;
    // What a kill in the middle of a write leaves: half a record, and content that nothing names.
    let log = folder.path().join("mutations.log");
    let mut text = std::fs::read(&log).unwrap();
    text.extend_from_slice(b"{\"do\":\"put\",\"position\":99");
    std::fs::write(&log, text).unwrap();
    let stray = folder.path().join("content/0/fff");
    std::fs::write(&stray, b"half").unwrap();

    let cloud = Cloud::start(config(folder.path())).await;
    let after = (cloud.app.list("").await.unwrap(), cloud.app.head("kept+%25").await.unwrap());
    assert_eq!(before.0, after.0);
    let (mut told, mut tells) = (before.1.unwrap(), after.1.unwrap());
    told.remove("date");
    tells.remove("date");
    assert_eq!(told, tells);
    assert!(!stray.exists());
    assert_eq!(feed(cloud.running.events_address, "head=true", TOKEN).await.1, head);
    assert!(cloud.app.put("x", &HeaderMap::new(), Bytes::new()).await.is_err(), "still fenced");
    set_policy(&cloud.migration, None).await;
    assert_eq!(complete(&cloud.app, "upload", &id, &tags, &HeaderMap::new()).await.0, StatusCode::OK);
    assert_eq!(cloud.app.get("upload").await.unwrap().unwrap().1, "part");
    cloud.app.delete("replaced").await.unwrap();
    assert_eq!(
        cloud.app.get("copy").await.unwrap().unwrap().1,
        "new",
        "a copy does not depend on its original"
    );
    cloud.stop().await;
    let cloud = Cloud::start(S3Config { sync: true, ..config(folder.path()) }).await;
    assert_eq!(cloud.app.get("copy").await.unwrap().unwrap().1, "new");
    put(&cloud.app, "synced", "x").await;
    assert!(matches!(
        rehome_testkit::cloud::serve_s3(config(folder.path()), Default::default()).await,
        Err(rehome_testkit::cloud::CloudError::Folder { .. })
    ));
    cloud.stop().await;
}

#[tokio::test]
async fn faults_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(config(folder.path())).await;
    let clean = put(&cloud.app, "clean", "content").await;
    cloud.running.faults().set(Faults { fail_every: Some(2), ..Faults::default() });
    let mut failed = 0;
    for _ in 0..10 {
        failed += u32::from(cloud.app.head("clean").await.is_err());
    }
    assert_eq!(failed, 5);
    cloud.running.faults().set(Faults { damage_every: Some(1), ..Faults::default() });
    let damaged = put(&cloud.app, "damaged", "content").await;
    assert_ne!(clean, damaged);
    assert_ne!(cloud.app.get("damaged").await.unwrap().unwrap().1, "content");
    cloud.running.faults().set(Faults { capacity_bytes: Some(20), ..Faults::default() });
    let full = cloud.app.put("more", &HeaderMap::new(), Bytes::from_static(b"0123456789")).await.unwrap_err();
    assert_eq!(full.code(), Some("QuotaExceeded"));
    assert!(cloud.app.head("more").await.unwrap().is_none());
    cloud.app.delete("clean").await.unwrap();
    put(&cloud.app, "more", "0123456789").await;
    cloud.stop().await;
}
