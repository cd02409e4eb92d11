//! What the shop's bucket holds before the move: many small pictures, a few large ones, and keys that trip up movers.
//! The same seed makes the same bytes; the manifest says what must be there at the end.

use crate::s3::{S3, S3Failure};
use crate::shop::MEDIA;
use bytes::Bytes;
use fastrand::Rng;
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

const AT_ONCE: usize = 16;

/// How much of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Objects in all; the odd and the large ones are among them, as far as they fit.
    pub objects: u64,
    /// Sizes of small objects lie between 0 and this, most of them small.
    pub small_bytes: u64,
    pub large_objects: u64,
    pub large_bytes: u64,
}

impl Profile {
    /// A tenth of a percent of large objects, at least two.
    pub fn of(objects: u64) -> Self {
        Self {
            objects,
            small_bytes: 24 * 1024,
            large_objects: (objects / 1_000).clamp(2, 8),
            large_bytes: 12 << 20,
        }
    }
}

/// One object as it was put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seeded {
    pub key: String,
    pub bytes: u64,
    /// BLAKE3 of the content, in hex.
    pub hash: String,
    /// Content headers and user metadata (`x-amz-meta-…`).
    pub headers: Vec<(String, String)>,
}

impl Seeded {
    /// Is `content` what was put there?
    pub fn is(&self, content: &[u8]) -> bool {
        content.len() as u64 == self.bytes && blake3::hash(content).to_hex().as_str() == self.hash
    }
}

/// Everything that was put.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub objects: Vec<Seeded>,
}

impl Manifest {
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.bytes).sum()
    }
}

/// Names below [`MEDIA`] that an exact store keeps apart.
const ODD: [&str; 18] = [
    "a",
    "a/b",
    "a/",
    "a//b",
    "plus+sign",
    "plus sign",
    "per%25cent",
    "per%cent",
    "%2F",
    "ünïcödé/图片.png",
    "e\u{301}",
    "\u{e9}",
    "dir/",
    "dot/../dot",
    "quote'\"&<>",
    "query?x=1#y",
    "empty",
    "UPPER and upper",
];

/// Fills a bucket. Every object below [`MEDIA`]; content and keys follow from `number` alone.
pub async fn seed(s3: &S3, profile: Profile, number: u64) -> Result<Manifest, S3Failure> {
    let plan = (0..profile.objects).map(|index| async move {
        let (key, headers, content) = object(profile, number, index);
        let seeded = Seeded {
            key,
            bytes: content.len() as u64,
            hash: blake3::hash(&content).to_hex().to_string(),
            headers,
        };
        s3.put(&seeded.key, &header_map(&seeded.headers), content).await?;
        Ok::<_, S3Failure>(seeded)
    });
    let mut objects: Vec<Seeded> = stream::iter(plan).buffer_unordered(AT_ONCE).try_collect().await?;
    objects.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(Manifest { objects })
}

fn object(profile: Profile, number: u64, index: u64) -> (String, Vec<(String, String)>, Bytes) {
    let mut random = Rng::with_seed(number.wrapping_mul(1_000_003).wrapping_add(index));
    let odd = usize::try_from(index).ok().and_then(|index| ODD.get(index));
    let first_large = ODD.len() as u64;
    let large = (first_large..first_large + profile.large_objects).contains(&index);
    let (name, size) = match odd {
        Some(name) if name.starts_with("empty") || name.ends_with('/') => ((*name).to_string(), 0),
        Some(name) => ((*name).to_string(), small(&mut random, profile.small_bytes)),
        // Not a multiple of any part size.
        None if large => (format!("film/{index:08}.mp4"), profile.large_bytes + random.u64(1..4_096)),
        None => (format!("{:02x}/{index:08}.jpg", random.u8(..)), small(&mut random, profile.small_bytes)),
    };
    let content = content(&mut random, size);
    (format!("{MEDIA}{name}"), headers(&mut random, &name, index), content)
}

/// Most pictures are much smaller than the largest.
fn small(random: &mut Rng, most: u64) -> u64 {
    let share = random.f64();
    (most as f64 * share * share * share) as u64
}

/// Half noise, half text that compresses, as real buckets are.
fn content(random: &mut Rng, size: u64) -> Bytes {
    let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
    if random.bool() {
        random.fill(&mut content);
    } else {
        let line = format!("line {:016x}\n", random.u64(..)).into_bytes();
        content.iter_mut().zip(line.iter().cycle()).for_each(|(byte, text)| *byte = *text);
        if let Some(chunk) = content.first_chunk_mut::<8>() {
            random.fill(chunk);
        }
    }
    content.into()
}

fn headers(random: &mut Rng, name: &str, index: u64) -> Vec<(String, String)> {
    let kind = if name.ends_with(".mp4") { "video/mp4" } else { "image/jpeg" };
    let mut headers = vec![("content-type".to_string(), kind.to_string())];
    let mut add = |name: &str, value: String| headers.push((name.into(), value));
    if index.is_multiple_of(3) {
        add("cache-control", "public, max-age=31536000".into());
        add("x-amz-meta-artist", format!("artist {}", random.u8(..)));
    }
    if index.is_multiple_of(5) {
        add("content-disposition", "inline; filename=\"picture.jpg\"".into());
        add("content-language", "en".into());
        add("x-amz-meta-mtime", format!("{}.123456789", 1_600_000_000 + index));
    }
    if index.is_multiple_of(7) {
        add("content-encoding", "identity".into());
        add("expires", "Wed, 21 Oct 2037 07:28:00 GMT".into());
    }
    headers
}

fn header_map(headers: &[(String, String)]) -> HeaderMap {
    let parsed = headers.iter().filter_map(|(name, value)| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?))
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_same_seed_makes_the_same_world() {
        let profile = Profile { objects: 300, small_bytes: 4_096, large_objects: 2, large_bytes: 50_000 };
        let keys: BTreeSet<String> = (0..300).map(|index| object(profile, 7, index).0).collect();
        assert_eq!(keys.len(), 300);
        assert!((0..300).all(|index| object(profile, 7, index) == object(profile, 7, index)));
        assert!((20..300).any(|index| object(profile, 7, index).2 != object(profile, 8, index).2));
        assert_eq!((0..300).filter(|&index| object(profile, 7, index).2.len() >= 50_000).count(), 2);
        assert!((0..300).any(|index| object(profile, 7, index).2.is_empty()));
    }
}
