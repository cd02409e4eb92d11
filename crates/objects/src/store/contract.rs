//! The contract of [`Store`] as code that every driver runs: against the memory store, folders, and servers that nobody here
//! wrote. A check that a store's capabilities or a server's known flaws rule out is left out by name, never in silence.
//! It works in a bucket of its own and leaves it empty.

use super::{Attributes, Condition, Entry, Store, UploadedPart};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use rehome_part::ErrorKind;
use std::collections::BTreeMap;

/// What the suite has to know of the store under test.
#[derive(Debug, Clone)]
pub struct Options {
    /// Keys this server is known to break or refuse, although its driver would take them.
    pub skip_keys: Vec<String>,
    /// The number of keys in the paging check; above 1,000 there is more than one page.
    pub listed_keys: usize,
    /// The size of the object written in parts.
    pub multipart_bytes: usize,
    /// Checks that this server fails for reasons of its own, by name.
    pub skip: Vec<&'static str>,
    /// Content headers that this server is known to drop.
    pub lossy_headers: Vec<&'static str>,
    pub flaws: Vec<Flaw>,
    /// Names of user metadata to try.
    pub user_names: Vec<&'static str>,
}

/// What servers are known to do wrong in a way that no driver can mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Deleting a key that is not there but is above or below one that is (`a` or `a/b/c` of `a/b`) fails or takes that one.
    KinDelete,
    /// The tag told on completion of an upload is not the object's.
    CompletionTag,
    /// Completion with a part that is not there throws the upload away.
    CompletionOnce,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            skip_keys: Vec::new(),
            listed_keys: 1_203,
            multipart_bytes: 20 << 20,
            skip: Vec::new(),
            lossy_headers: Vec::new(),
            flaws: Vec::new(),
            user_names: vec!["mtime", "owner", "with-dash"],
        }
    }
}

/// What was found: every check that ran, with what it found wrong.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    pub passed: Vec<&'static str>,
    pub failed: Vec<(&'static str, String)>,
    pub skipped: Vec<&'static str>,
}

impl Findings {
    /// # Errors
    /// All that failed, one per line.
    pub fn verdict(&self) -> Result<(), String> {
        if self.failed.is_empty() {
            return Ok(());
        }
        let lines = self.failed.iter().map(|(name, text)| format!("{name}: {text}"));
        Err(lines.collect::<Vec<_>>().join("\n"))
    }
}

type Outcome = Result<(), String>;

/// Keys that drivers and servers like to alter.
pub const ODD_KEYS: [&str; 17] = [
    "plain.txt",
    "a b  c",
    "plus+plus",
    "percent%25 %2F %",
    "ünïcödé/漢字/🦀",
    "e\u{301}",
    "quote'\"<>&amp;",
    "dollar$&,;:@=?#[]{}|\\^`~!*()",
    "tilde~dash-under_dot.",
    "a//b",
    "trailing/",
    "p",
    "p/q",
    ".hidden",
    "dots/..x/y.",
    " leading space",
    "trailing space ",
];

/// Runs every check that the store's capabilities allow, in an existing, empty bucket (or prefix).
pub async fn check_all(store: &dyn Store, options: &Options) -> Findings {
    let mut findings = Findings::default();
    macro_rules! run {
        ($applies:expr, $check:ident) => {
            let name = stringify!($check);
            if !$applies || options.skip.contains(&name) {
                findings.skipped.push(name);
            } else {
                match Box::pin($check(store, options)).await {
                    Ok(()) => findings.passed.push(name),
                    Err(text) => findings.failed.push((name, text)),
                }
                if let Err(text) = empty(store).await {
                    findings.failed.push((name, format!("clearing the bucket afterwards: {text}")));
                    return findings;
                }
            }
        };
    }
    let able = store.capabilities().clone();
    run!(true, the_bucket_is_there);
    run!(true, what_is_put_can_be_read);
    run!(true, nothing_and_one_byte);
    run!(true, a_missing_key_is_none);
    run!(true, overwriting_replaces);
    run!(true, ranges);
    run!(true, odd_keys_survive);
    run!(true, refused_keys_are_refused);
    run!(able.user_metadata || able.content_headers, attributes_survive);
    run!(true, checksums_are_right);
    run!(able.sorted_listing, listing_is_sorted_and_paged);
    run!(true, listing_by_prefix);
    run!(able.conditional_put, conditional_puts);
    run!(able.conditional_get, conditional_gets);
    run!(able.multipart.is_some(), multipart);
    run!(able.multipart.is_some(), multipart_is_seen_when_complete);
    run!(able.multipart.is_some(), open_uploads_are_listed);
    run!(able.policy, policies_come_back);
    findings
}

/// A bucket that is not there: every call says `NotFound`.
pub async fn check_missing_bucket(store: &dyn Store) -> Outcome {
    let mut errors = vec![("check", store.check().await.err())];
    errors.push(("list", store.list("", None).next().await.and_then(Result::err)));
    errors.push(("put", store.put("k", &Attributes::default(), Bytes::new(), Condition::Always).await.err()));
    errors.push(("get", store.get("k", None, None).await.err()));
    for (call, error) in errors {
        match error {
            Some(error) if error.kind == ErrorKind::NotFound => {}
            Some(error) => return Err(format!("{call} in a missing bucket: {:?}: {error}", error.kind)),
            None => return Err(format!("{call} in a missing bucket did not fail")),
        }
    }
    Ok(())
}

/// A store opened with wrong keys: every call says `Credentials`, and says what to check.
pub async fn check_wrong_credentials(store: &dyn Store) -> Outcome {
    let attributes = Attributes::default();
    let errors = [
        ("check", store.check().await.err()),
        ("put", store.put("k", &attributes, Bytes::from_static(b"x"), Condition::Always).await.err()),
        ("get", store.get("k", None, None).await.err()),
        ("delete", store.delete("k").await.err()),
    ];
    for (call, error) in errors {
        match error {
            Some(error) if error.kind == ErrorKind::Credentials && error.hint.is_some() => {}
            Some(error) => return Err(format!("{call} with wrong keys: {:?}: {error}", error.kind)),
            None => return Err(format!("{call} with wrong keys did not fail")),
        }
    }
    Ok(())
}

async fn the_bucket_is_there(store: &dyn Store, _: &Options) -> Outcome {
    store.check().await.map_err(told("check"))?;
    let created = store.create().await.map_err(told("create"))?;
    ensure(!created, || "create says it made a bucket that was there".into())?;
    ensure(keys(store, "", None).await?.is_empty(), || "the bucket is not empty at the start".into())
}

async fn what_is_put_can_be_read(store: &dyn Store, _: &Options) -> Outcome {
    let content = pattern(300_000, 1);
    let written = put(store, "folder/key", &content).await?;
    let meta = store.head("folder/key").await.map_err(told("head"))?.ok_or("head finds nothing")?;
    equal("size", &meta.size, &300_000)?;
    ensure(meta.etag.is_some(), || "head has no tag".into())?;
    if written.etag.is_some() {
        equal("the tag of put and of head", &written.etag, &meta.etag)?;
    }
    let (got, read) = get(store, "folder/key").await?.ok_or("get finds nothing")?;
    ensure(read == content, || "get brings other bytes than put took".into())?;
    equal("the tag of head and of get", &meta.etag, &got.etag)?;
    let listed = entries(store, "", None).await?;
    equal("listed", &listed.len(), &1)?;
    equal("listed key", &listed[0].key.as_str(), &"folder/key")?;
    equal("listed size", &listed[0].size, &300_000)?;
    if listed[0].etag.is_some() {
        equal("the tag of the listing and of head", &listed[0].etag, &meta.etag)?;
    }
    ensure(listed[0].modified.is_some(), || "the listing has no time".into())
}

async fn nothing_and_one_byte(store: &dyn Store, _: &Options) -> Outcome {
    for size in [0, 1] {
        let key = format!("size-{size}");
        put(store, &key, &pattern(size, 2)).await?;
        let (meta, read) = get(store, &key).await?.ok_or("get finds nothing")?;
        equal("size", &meta.size, &(size as u64))?;
        ensure(read == pattern(size, 2), || format!("{size} bytes come back as {} bytes", read.len()))?;
    }
    Ok(())
}

async fn a_missing_key_is_none(store: &dyn Store, options: &Options) -> Outcome {
    put(store, "there/is", &Bytes::new()).await?;
    for key in ["missing", "there", "there/is/not"] {
        ensure(store.head(key).await.map_err(told("head"))?.is_none(), || format!("head finds `{key}`"))?;
        let got = store.get(key, None, None).await.map_err(told("get"))?;
        ensure(got.is_none(), || format!("get finds `{key}`"))?;
        if key == "missing" || !options.flaws.contains(&Flaw::KinDelete) {
            store.delete(key).await.map_err(told("delete of a missing key"))?;
        }
    }
    ensure(store.head("there/is").await.map_err(told("head"))?.is_some(), || {
        "a delete took its neighbour".into()
    })
}

async fn overwriting_replaces(store: &dyn Store, _: &Options) -> Outcome {
    let first = put(store, "key", &pattern(5_000, 3)).await?;
    let second = put(store, "key", &pattern(70, 4)).await?;
    if first.etag.is_some() {
        ensure(first.etag != second.etag, || "two contents have one tag".into())?;
    }
    let (_, read) = get(store, "key").await?.ok_or("get finds nothing")?;
    ensure(read == pattern(70, 4), || "the first content is still there".into())?;
    store.delete("key").await.map_err(told("delete"))?;
    ensure(store.head("key").await.map_err(told("head"))?.is_none(), || "a deleted key is still there".into())
}

async fn ranges(store: &dyn Store, _: &Options) -> Outcome {
    let content = pattern(3_000_000, 5);
    put(store, "key", &content).await?;
    for range in [0..1, 0..3_000_000, 1_048_575..1_048_577, 2_999_999..3_000_000, 100_000..2_900_000] {
        let (start, end) = (range.start as usize, range.end as usize);
        let got = store.get("key", Some(range.clone()), None).await.map_err(told("ranged get"))?;
        let (meta, body) = got.ok_or("a ranged get finds nothing")?;
        equal("the size beside a range", &meta.size, &3_000_000)?;
        let read = collect(body).await?;
        ensure(read == content.slice(start..end), || format!("{range:?} brings other bytes"))?;
    }
    Ok(())
}

async fn odd_keys_survive(store: &dyn Store, options: &Options) -> Outcome {
    let free = store.capabilities().free_keys;
    let mut expected = BTreeMap::new();
    for key in ODD_KEYS {
        if options.skip_keys.iter().any(|skipped| skipped == key) {
            continue;
        }
        let content = Bytes::from(format!("content of {key}"));
        match store.put(key, &Attributes::default(), content.clone(), Condition::Always).await {
            Ok(_) => _ = expected.insert(key.to_owned(), content),
            Err(error) if error.kind == ErrorKind::Unsupported && !free => {}
            Err(error) => return Err(format!("put of `{key}`: {:?}: {error}", error.kind)),
        }
    }
    for (key, content) in &expected {
        let (_, read) = get(store, key).await?.ok_or_else(|| format!("`{key}` was put and is not there"))?;
        ensure(read == *content, || format!("`{key}` has the content {read:?}"))?;
    }
    let listed = keys(store, "", None).await?;
    let wanted: Vec<String> = expected.keys().cloned().collect();
    if store.capabilities().sorted_listing {
        equal("listed keys", &listed, &wanted)?;
    } else {
        let mut listed = listed;
        listed.sort_unstable();
        equal("listed keys", &listed, &wanted)?;
    }
    for key in expected.keys() {
        store.delete(key).await.map_err(told("delete"))?;
        ensure(store.head(key).await.map_err(told("head"))?.is_none(), || {
            format!("`{key}` was not deleted")
        })?;
    }
    Ok(())
}

/// Where keys are not free, what cannot be kept is refused by kind and nothing appears under another name.
async fn refused_keys_are_refused(store: &dyn Store, _: &Options) -> Outcome {
    if store.capabilities().free_keys {
        return Ok(());
    }
    for key in ["/a", "a//b", "a/", "a/../b", "./a"] {
        let refused = store.put(key, &Attributes::default(), Bytes::new(), Condition::Always).await;
        match refused {
            Err(error) if error.kind == ErrorKind::Unsupported => {}
            Err(error) => return Err(format!("`{key}`: {:?}: {error}", error.kind)),
            Ok(_) => {
                let listed = keys(store, "", None).await?;
                ensure(listed == [key], || format!("`{key}` was altered to {listed:?}"))?;
                store.delete(key).await.map_err(told("delete"))?;
                continue;
            }
        }
        ensure(keys(store, "", None).await?.is_empty(), || {
            format!("`{key}` was refused and something is there")
        })?;
    }
    Ok(())
}

async fn attributes_survive(store: &dyn Store, options: &Options) -> Outcome {
    let able = store.capabilities();
    let mut sent = Attributes::default();
    if able.content_headers {
        let keep = |name: &'static str, text: &str| {
            (!options.lossy_headers.contains(&name)).then(|| text.to_owned())
        };
        sent.content_type = keep("content-type", "text/html; charset=utf-8");
        sent.content_encoding = keep("content-encoding", "gzip");
        sent.content_language = keep("content-language", "de-CH");
        sent.content_disposition = keep("content-disposition", "attachment; filename=\"a b.html\"");
        sent.cache_control = keep("cache-control", "public, max-age=31536000");
        sent.expires = keep("expires", "Wed, 21 Oct 2026 07:28:00 GMT");
    }
    if able.user_metadata {
        let pairs = [("mtime", "1700000000.123456789"), ("owner", "a  b; c=\"d\""), ("with-dash", "1")];
        let tried = pairs.iter().filter(|(name, _)| options.user_names.contains(name));
        sent.user = tried.map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    }
    let content = Bytes::from_static(b"<p>");
    store.put("page", &sent, content.clone(), Condition::Always).await.map_err(told("put"))?;
    let head = store.head("page").await.map_err(told("head"))?.ok_or("head finds nothing")?;
    equal("attributes of head", &kept(head.attributes, &sent), &sent)?;
    let (meta, read) = get(store, "page").await?.ok_or("get finds nothing")?;
    equal("attributes of get", &kept(meta.attributes, &sent), &sent)?;
    ensure(read == content, || "the content was unpacked on the way".into())?;
    if able.multipart.is_some() && !options.skip.contains(&"multipart") {
        let id = store.begin_upload("parts", &sent).await.map_err(told("begin"))?;
        let part = store.upload_part("parts", &id, 1, content).await.map_err(told("upload"))?;
        store.complete_upload("parts", &id, &[part]).await.map_err(told("complete"))?;
        let head = store.head("parts").await.map_err(told("head"))?.ok_or("head finds nothing")?;
        equal("attributes of a multipart object", &kept(head.attributes, &sent), &sent)?;
    }
    Ok(())
}

/// A type that was not sent may be the store's default; what a store lists as lost is not compared.
fn kept(mut found: Attributes, sent: &Attributes) -> Attributes {
    found.not_carried.clear();
    if sent.content_type.is_none() {
        found.content_type = None;
    }
    found
}

async fn checksums_are_right(store: &dyn Store, _: &Options) -> Outcome {
    use md5::{Digest, Md5};
    let content = pattern(100_000, 6);
    let written = put(store, "key", &content).await?;
    let head = store.head("key").await.map_err(told("head"))?.ok_or("head finds nothing")?;
    let (got, _) = get(store, "key").await?.ok_or("get finds nothing")?;
    let digest: String = Md5::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let truth = super::Checksums {
        md5: Some(digest),
        crc64nvme: Some(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &content)),
        crc64xz: Some(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, &content)),
        crc32c: u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &content)).ok(),
    };
    for (call, found) in [("put", written.checksums), ("head", head.checksums), ("get", got.checksums)] {
        ensure(found.agree(&truth) != Some(false), || format!("{call} tells wrong checksums: {found:?}"))?;
    }
    Ok(())
}

async fn listing_is_sorted_and_paged(store: &dyn Store, options: &Options) -> Outcome {
    let count = options.listed_keys;
    let mut wanted: Vec<String> =
        (0..count).map(|number| format!("list/{:05}", number * 7 % count)).collect();
    wanted.extend(["list-", "list.", "list0", "lisa", "lisu/x"].map(String::from));
    // The first one alone: a server that keeps objects as files makes the folder then, and rclone's fails one of several that
    // make it at once.
    let (first, others) = wanted.split_first().expect("there are names");
    put(store, first, &Bytes::from_static(b"x")).await?;
    let puts = futures::stream::iter(others)
        .map(|key| async move { put(store, key, &Bytes::from_static(b"x")).await.map(drop) })
        .buffer_unordered(16);
    puts.try_collect::<Vec<()>>().await?;
    wanted.sort_unstable();
    wanted.dedup();
    equal("all keys in byte order", &keys(store, "", None).await?, &wanted)?;
    for after in ["", "a", "list", "list/", "list/00500", "list/005005", "list0", "lisu/", "lisu/x", "z"] {
        let rest: Vec<String> = wanted.iter().filter(|key| key.as_str() > after).cloned().collect();
        equal(&format!("keys after `{after}`"), &keys(store, "", Some(after)).await?, &rest)?;
    }
    let rest: Vec<String> = wanted
        .iter()
        .filter(|key| key.starts_with("list/00") && key.as_str() > "list/00100")
        .cloned()
        .collect();
    equal("keys with prefix and after", &keys(store, "list/00", Some("list/00100")).await?, &rest)
}

async fn listing_by_prefix(store: &dyn Store, _: &Options) -> Outcome {
    for key in ["a", "ab", "abc/d", "abc/e/f", "abd", "b/abc"] {
        put(store, key, &Bytes::new()).await?;
    }
    for (prefix, wanted) in [
        ("ab", vec!["ab", "abc/d", "abc/e/f", "abd"]),
        ("abc/", vec!["abc/d", "abc/e/f"]),
        ("abc", vec!["abc/d", "abc/e/f"]),
        ("abc/e/f", vec!["abc/e/f"]),
        ("abc/e/f/", vec![]),
        ("nothing", vec![]),
    ] {
        let mut listed = keys(store, prefix, None).await?;
        listed.sort_unstable();
        equal(
            &format!("keys with the prefix `{prefix}`"),
            &listed,
            &wanted.into_iter().map(String::from).collect(),
        )?;
    }
    Ok(())
}

async fn conditional_puts(store: &dyn Store, _: &Options) -> Outcome {
    let attributes = Attributes::default();
    let write = async |text: &'static str, condition: Condition| {
        store.put("key", &attributes, Bytes::from_static(text.as_bytes()), condition).await
    };
    let changed = |call: &str, result: rehome_part::Result<super::Written>| match result {
        Err(error) if error.kind == ErrorKind::Changed => Ok(()),
        Err(error) => Err(format!("{call}: {:?}: {error}", error.kind)),
        Ok(_) => Err(format!("{call} was done")),
    };
    changed("a put over nothing that was to match", write("0", Condition::Matches("0".repeat(32))).await)?;
    let first = write("1", Condition::Absent).await.map_err(told("put where nothing is"))?;
    changed("a put where something is", write("2", Condition::Absent).await)?;
    changed("a put over another object", write("3", Condition::Matches("0".repeat(32))).await)?;
    let tag = first.etag.ok_or("a conditional put tells no tag")?;
    write("four", Condition::Matches(tag.clone())).await.map_err(told("put over what was expected"))?;
    changed("a put over what was replaced", write("5", Condition::Matches(tag)).await)?;
    let (_, read) = get(store, "key").await?.ok_or("get finds nothing")?;
    equal("the content in the end", &read.as_ref(), &b"four".as_slice())
}

async fn conditional_gets(store: &dyn Store, _: &Options) -> Outcome {
    put(store, "key", &pattern(2_000_000, 7)).await?;
    let tag = store.head("key").await.map_err(told("head"))?.and_then(|meta| meta.etag).ok_or("no tag")?;
    let got = store.get("key", Some(10..20), Some(&tag)).await.map_err(told("get of what was expected"))?;
    ensure(got.is_some(), || "get finds nothing".into())?;
    put(store, "key", &pattern(2_000_000, 8)).await?;
    for range in [None, Some(10..20)] {
        match store.get("key", range, Some(&tag)).await {
            Err(error) if error.kind == ErrorKind::Changed => {}
            Err(error) => return Err(format!("get of a replaced object: {:?}: {error}", error.kind)),
            Ok(_) => return Err("get of a replaced object was done".into()),
        }
    }
    Ok(())
}

async fn multipart(store: &dyn Store, options: &Options) -> Outcome {
    let limits = store.capabilities().multipart.ok_or("no multipart")?;
    let size = usize::try_from(limits.smallest).unwrap_or(usize::MAX).max(5 << 20);
    let content = pattern(options.multipart_bytes, 9);
    let id = store.begin_upload("big", &Attributes::default()).await.map_err(told("begin"))?;
    let mut parts = Vec::new();
    for (index, start) in (0..content.len()).step_by(size).enumerate() {
        let number = u32::try_from(index + 1).map_err(|error| error.to_string())?;
        let bytes = content.slice(start..(start + size).min(content.len()));
        parts.push(store.upload_part("big", &id, number, bytes).await.map_err(told("upload"))?);
    }
    match store.uploaded_parts("big", &id).await {
        Ok(there) => equal("the parts that are there", &there, &parts)?,
        Err(error) if error.kind == ErrorKind::Unsupported => {}
        Err(error) => return Err(format!("listing the parts: {:?}: {error}", error.kind)),
    }
    let written = store.complete_upload("big", &id, &parts).await.map_err(told("complete"))?;
    let (meta, read) = get(store, "big").await?.ok_or("get finds nothing")?;
    ensure(read == content, || "the parts were joined to other bytes".into())?;
    if written.etag.is_some() && !options.flaws.contains(&Flaw::CompletionTag) {
        equal("the tag of complete and of get", &written.etag, &meta.etag)?;
    }
    let truth = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &content);
    ensure(meta.checksums.crc64nvme.is_none_or(|crc| crc == truth), || "a wrong checksum is told".into())
}

async fn multipart_is_seen_when_complete(store: &dyn Store, options: &Options) -> Outcome {
    put(store, "key", &Bytes::from_static(b"before")).await?;
    let id = store.begin_upload("key", &Attributes::default()).await.map_err(told("begin"))?;
    let part =
        store.upload_part("key", &id, 1, Bytes::from_static(b"after")).await.map_err(told("upload"))?;
    let (_, read) = get(store, "key").await?.ok_or("get finds nothing")?;
    equal("the content before completion", &read.as_ref(), &b"before".as_slice())?;
    equal("listed before completion", &keys(store, "", None).await?, &vec!["key".to_owned()])?;
    if !options.flaws.contains(&Flaw::CompletionOnce) {
        let wrong = UploadedPart { etag: "0".repeat(32), ..part.clone() };
        let taken = store.complete_upload("key", &id, &[wrong]).await.is_ok();
        ensure(!taken, || "a part that is not there was taken".into())?;
    }
    store.complete_upload("key", &id, &[part]).await.map_err(told("complete"))?;
    let (_, read) = get(store, "key").await?.ok_or("get finds nothing")?;
    equal("the content after completion", &read.as_ref(), &b"after".as_slice())
}

async fn open_uploads_are_listed(store: &dyn Store, _: &Options) -> Outcome {
    let id = store.begin_upload("open/a b", &Attributes::default()).await.map_err(told("begin"))?;
    store.upload_part("open/a b", &id, 1, pattern(10, 1)).await.map_err(told("upload"))?;
    let open = match store.open_uploads().await {
        Ok(open) => open,
        Err(error) if error.kind == ErrorKind::Unsupported => {
            return store.abort_upload("open/a b", &id).await.map_err(told("abort"));
        }
        Err(error) => return Err(format!("listing open uploads: {:?}: {error}", error.kind)),
    };
    let found = open.iter().any(|upload| upload.key == "open/a b" && upload.id == id);
    ensure(found, || format!("the open upload is not among {open:?}"))?;
    store.abort_upload("open/a b", &id).await.map_err(told("abort"))?;
    let open = store.open_uploads().await.map_err(told("list after abort"))?;
    ensure(open.iter().all(|upload| upload.id != id), || "an aborted upload is still open".into())?;
    let late = store.upload_part("open/a b", &id, 2, pattern(10, 1)).await;
    ensure(late.is_err(), || "an aborted upload takes parts".into())?;
    ensure(keys(store, "", None).await?.is_empty(), || "an aborted upload left an object".into())
}

async fn policies_come_back(store: &dyn Store, _: &Options) -> Outcome {
    let principal = "arn:aws:iam::123456789012:user/rehome";
    match store.policy().await {
        Ok(None) => {}
        Ok(Some(text)) => return Err(format!("a new bucket has the policy {text}")),
        Err(error) if error.kind == ErrorKind::Unsupported => return Ok(()),
        Err(error) => return Err(format!("reading no policy: {:?}: {error}", error.kind)),
    }
    let fence = store.fence_policy(None, principal).map_err(told("fence"))?;
    store.set_policy(Some(&fence)).await.map_err(told("set"))?;
    let read = store.policy().await.map_err(told("read"))?.ok_or("the policy that was set is not there")?;
    let value =
        |text: &str| serde_json::from_str::<serde_json::Value>(text).map_err(|error| error.to_string());
    equal("the policy that was set", &value(&read)?, &value(&fence)?)?;
    ensure(store.unfence_policy(&read).map_err(told("unfence"))?.is_none(), || {
        "the fence does not come out".into()
    })?;
    store.set_policy(None).await.map_err(told("remove"))?;
    ensure(store.policy().await.map_err(told("read"))?.is_none(), || "the policy is still there".into())
}

async fn put(store: &dyn Store, key: &str, content: &Bytes) -> Result<super::Written, String> {
    let put = store.put(key, &Attributes::default(), content.clone(), Condition::Always).await;
    put.map_err(|error| format!("put of `{key}`: {:?}: {error}", error.kind))
}

async fn get(store: &dyn Store, key: &str) -> Result<Option<(super::Meta, Bytes)>, String> {
    match store
        .get(key, None, None)
        .await
        .map_err(|error| format!("get of `{key}`: {:?}: {error}", error.kind))?
    {
        Some((meta, body)) => Ok(Some((meta, collect(body).await?))),
        None => Ok(None),
    }
}

async fn collect(mut body: super::Body) -> Result<Bytes, String> {
    let mut whole = BytesMut::new();
    while let Some(bytes) = body.next().await {
        whole.extend_from_slice(&bytes.map_err(told("body"))?);
    }
    Ok(whole.freeze())
}

async fn entries(store: &dyn Store, prefix: &str, after: Option<&str>) -> Result<Vec<Entry>, String> {
    store.list(prefix, after).try_collect().await.map_err(told("list"))
}

async fn keys(store: &dyn Store, prefix: &str, after: Option<&str>) -> Result<Vec<String>, String> {
    Ok(entries(store, prefix, after).await?.into_iter().map(|entry| entry.key).collect())
}

async fn empty(store: &dyn Store) -> Outcome {
    let found = keys(store, "", None).await?;
    let deletes = futures::stream::iter(&found)
        .map(|key| async move { store.delete(key).await.map_err(told("delete")) })
        .buffer_unordered(16);
    deletes.try_collect::<Vec<()>>().await.map(drop)
}

/// Bytes that differ everywhere and are the same every time.
fn pattern(size: usize, seed: u64) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; size];
    random.fill(&mut bytes);
    bytes.into()
}

fn told(call: &'static str) -> impl Fn(rehome_part::Error) -> String {
    move |error| format!("{call}: {:?}: {error}", error.kind)
}

fn ensure(holds: bool, text: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(text()) }
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, wanted: &T) -> Outcome {
    ensure(found == wanted, || {
        let (found, wanted) = (format!("{found:?}"), format!("{wanted:?}"));
        let short = |text: &str| text.chars().take(600).collect::<String>();
        format!("{what}: found {}, wanted {}", short(&found), short(&wanted))
    })
}
