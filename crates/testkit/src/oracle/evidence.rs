//! Reads the owner's bucket as it is: every order, every receipt, every picture.

use crate::s3::{S3, S3Failure};
use crate::shop::{MEDIA, ORDERS, Order, RECEIPTS};
use crate::world::{Manifest, Seeded};
use futures::{StreamExt, TryStreamExt, stream};
use http::HeaderMap;
use std::collections::{BTreeMap, BTreeSet};

const AT_ONCE: usize = 16;

/// A picture that is not what the manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Media {
    pub key: String,
    pub wrong: String,
}

/// What the owner holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    pub orders: Vec<Order>,
    /// Keys below `orders/` that hold no order, with the reason.
    pub damaged_orders: Vec<(String, String)>,
    /// Keys of receipts, without the common prefix.
    pub receipts: Vec<String>,
    /// Keys that belong to nothing of the shop.
    pub other_keys: Vec<String>,
    pub media_compared: u64,
    pub media_wrong: Vec<Media>,
    /// Pictures that are not in the manifest.
    pub media_unknown: Vec<String>,
}

/// Reads everything. Keys that begin with one of `ignored` (what a migration keeps for itself) are left out.
pub async fn gather(owner: &S3, manifest: &Manifest, ignored: &[String]) -> Result<Evidence, S3Failure> {
    let mut evidence = Evidence::default();
    let mut media = BTreeSet::new();
    let mut order_keys = Vec::new();
    for line in owner.list("").await? {
        if let Some(receipt) = line.key.strip_prefix(RECEIPTS) {
            evidence.receipts.push(receipt.to_string());
        } else if line.key.starts_with(ORDERS) {
            order_keys.push(line.key);
        } else if line.key.starts_with(MEDIA) {
            media.insert(line.key);
        } else if !ignored.iter().any(|prefix| line.key.starts_with(prefix)) {
            evidence.other_keys.push(line.key);
        }
    }
    read_orders(owner, order_keys, &mut evidence).await?;
    compare_media(owner, manifest, &media, &mut evidence).await?;
    Ok(evidence)
}

async fn read_orders(owner: &S3, keys: Vec<String>, evidence: &mut Evidence) -> Result<(), S3Failure> {
    let reads = keys.into_iter().map(|key| async move {
        let found = owner.get(&key).await?;
        Ok::<_, S3Failure>((key, found.map(|(_, content)| content)))
    });
    let read: BTreeMap<_, _> = stream::iter(reads).buffer_unordered(AT_ONCE).try_collect().await?;
    for (key, content) in read {
        match content.map(|content| serde_json::from_slice::<Order>(&content)) {
            Some(Ok(order)) if key == format!("{ORDERS}{}.json", order.id) => evidence.orders.push(order),
            Some(Ok(order)) => evidence.damaged_orders.push((key, format!("it holds order {}", order.id))),
            Some(Err(error)) => evidence.damaged_orders.push((key, error.to_string())),
            None => evidence.damaged_orders.push((key, "listed, but not there".into())),
        }
    }
    Ok(())
}

async fn compare_media(
    owner: &S3,
    manifest: &Manifest,
    present: &BTreeSet<String>,
    evidence: &mut Evidence,
) -> Result<(), S3Failure> {
    let reads = manifest.objects.iter().map(|seeded| async move {
        let wrong = if present.contains(&seeded.key) {
            owner
                .get(&seeded.key)
                .await?
                .map_or(Some("gone".into()), |(headers, content)| differs(seeded, &headers, &content))
        } else {
            Some("missing".into())
        };
        Ok::<_, S3Failure>(wrong.map(|wrong| Media { key: seeded.key.clone(), wrong }))
    });
    let compared: Vec<Option<Media>> = stream::iter(reads).buffered(AT_ONCE).try_collect().await?;
    evidence.media_compared = compared.len() as u64;
    evidence.media_wrong = compared.into_iter().flatten().collect();
    let expected: BTreeSet<&str> = manifest.objects.iter().map(|seeded| seeded.key.as_str()).collect();
    evidence.media_unknown = present.iter().filter(|key| !expected.contains(key.as_str())).cloned().collect();
    Ok(())
}

/// Every header that was put must be there as it was; a mover may add `x-amz-meta-mtime`, nothing else.
fn differs(seeded: &Seeded, headers: &HeaderMap, content: &[u8]) -> Option<String> {
    if !seeded.is(content) {
        return Some(format!("other content ({} bytes, should be {})", content.len(), seeded.bytes));
    }
    for (name, value) in &seeded.headers {
        let found = headers.get(name).and_then(|found| found.to_str().ok());
        if found != Some(value) {
            return Some(format!("header {name} is {found:?}, should be {value:?}"));
        }
    }
    let known =
        |name: &str| name == "x-amz-meta-mtime" || seeded.headers.iter().any(|(sent, _)| sent == name);
    let added =
        headers.keys().map(|name| name.as_str()).find(|name| name.starts_with("x-amz-meta-") && !known(name));
    added.map(|name| format!("metadata {name} was added"))
}
