//! Looking before anything is done: how much there is, how fast it changes, what stands in the way. It writes nothing.

use crate::follow::Feed;
use crate::listing::{Pair, is_out_of_order, is_reserved};
use crate::mover::{Mover, both_md5};
use bytes::Bytes;
use futures::StreamExt;
use rehome_part::{Assessment, Error, ErrorKind, Finding, Flow, Result, Severity, Side};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Objects read in part to see how fast reading is and how far their content shrinks.
const SAMPLES: usize = 8;
const SAMPLE_BYTES: u64 = 1 << 20;
/// What zstd itself takes for a fair trade of time for size.
const COMPRESSION_LEVEL: i32 = 3;
/// The shortest time over which the rate of change is measured.
const RATE_TIME: Duration = Duration::from_millis(500);
/// Keys told as examples.
const EXAMPLES: usize = 3;

fn finding(id: &str, severity: Severity, side: Side, text: String, remedy: &str) -> Finding {
    Finding { id: id.into(), severity, side: Some(side), text, remedy: Some(remedy.into()) }
}

pub(crate) async fn assess(mover: &Mover, feed: Option<&Arc<dyn Feed>>) -> Result<Assessment> {
    let mut assessment = Assessment { fingerprint: fingerprint(mover), ..Assessment::default() };
    if let Some(blocker) = source_blocker(mover).await? {
        assessment.findings.push(blocker);
        return Ok(assessment);
    }
    if let Some(blocker) = target_blocker(mover).await? {
        assessment.findings.push(blocker);
        return Ok(assessment);
    }
    let began = Instant::now();
    let first = match feed {
        Some(feed) => Some(feed.head().await.map_err(|e| e.on(Side::Source))?),
        None => None,
    };
    let survey = loop {
        match Survey::take(mover).await {
            Err(error) if is_out_of_order(&error) => tracing::warn!(%error, "sorting it here from now on"),
            other => break other?,
        }
    };
    if let (Some(feed), Some(first)) = (feed, first) {
        tokio::time::sleep(RATE_TIME.saturating_sub(began.elapsed())).await;
        let last = feed.head().await.map_err(|e| e.on(Side::Source))?;
        assessment.changes_per_second =
            Some(last.saturating_sub(first) as f64 / began.elapsed().as_secs_f64());
    }
    let sampled = Sampled::read(mover, &survey.samples).await;
    assessment.copy_seconds = sampled.copy_seconds(&survey, mover.settings.concurrency);
    assessment.compressed_ratio = sampled.compressed_ratio();
    assessment.objects = survey.objects;
    assessment.bytes = survey.bytes;
    survey.findings(mover, &mut assessment.findings);
    capability_findings(mover, feed.is_some(), &mut assessment.findings);
    Ok(assessment)
}

/// Names what was looked at, not what is in it.
fn fingerprint(mover: &Mover) -> String {
    let text = format!("objects\n{}\n{}", mover.source.address(), mover.target.address());
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

async fn source_blocker(mover: &Mover) -> Result<Option<Finding>> {
    let blocker = |id, error: &Error, remedy| {
        Some(finding(id, Severity::Blocker, Side::Source, error.text.clone(), remedy))
    };
    match mover.settings.retry.run(|| mover.source.check()).await {
        Ok(()) => Ok(None),
        Err(error) => match error.kind {
            ErrorKind::NotFound => {
                Ok(blocker("source-missing", &error, "check the bucket's name and region"))
            }
            ErrorKind::Credentials => Ok(blocker(
                "credentials-refused",
                &error,
                "check access_key and secret_key of the source, and that they may list the bucket",
            )),
            _ => Err(error.on(Side::Source)),
        },
    }
}

async fn target_blocker(mover: &Mover) -> Result<Option<Finding>> {
    match mover.settings.retry.run(|| mover.target.check()).await {
        Ok(()) => Ok(None),
        Err(error) => match error.kind {
            ErrorKind::NotFound => Ok(None),
            ErrorKind::Credentials => Ok(Some(finding(
                "credentials-refused",
                Severity::Blocker,
                Side::Target,
                error.text,
                "check access_key and secret_key of the target, and that they may list the bucket",
            ))),
            _ => Err(error.on(Side::Target)),
        },
    }
}

fn capability_findings(mover: &Mover, has_feed: bool, findings: &mut Vec<Finding>) {
    for side in [Side::Source, Side::Target] {
        if !mover.store(side).capabilities().met_vendor {
            let text =
                format!("the driver of {} is untested against the real service", mover.store(side).address());
            findings.push(finding(
                "driver-untested",
                Severity::Warning,
                side,
                text,
                "rehearse with a copy first",
            ));
        }
    }
    if !has_feed {
        findings.push(finding(
            "listing-only",
            Severity::Info,
            Side::Source,
            "changes are found by listing both sides again; the write pause is as long as a listing".into(),
            "name a change hook (docs/change-hook.md)",
        ));
    }
}

/// A count and the first few keys.
#[derive(Default)]
struct Tally {
    count: u64,
    examples: Vec<String>,
}

impl Tally {
    fn add(&mut self, key: &str) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(key.to_owned());
        }
    }

    fn tell(&self, id: &str, severity: Severity, what: &str, remedy: &str, findings: &mut Vec<Finding>) {
        if self.count > 0 {
            let text = format!("{} {what}, such as {}", self.count, self.examples.join(", "));
            findings.push(finding(id, severity, Side::Target, text, remedy));
        }
    }
}

/// What the two listings say.
#[derive(Default)]
struct Survey {
    objects: u64,
    bytes: u64,
    samples: Vec<(String, u64)>,
    /// On both sides with different content, and not copied by us.
    differing: Tally,
    extra: Tally,
    /// Keys the target cannot keep.
    unkeepable: Tally,
    too_large: Tally,
    /// Earlier keys that the present one begins with.
    above: Vec<String>,
}

impl Survey {
    async fn take(mover: &Mover) -> Result<Self> {
        let mut survey = Self::default();
        let mut merge = mover.merge_before(Flow::Forward);
        while let Some(pair) = merge.next().await? {
            if !is_reserved(&pair.key) {
                survey.add(mover, &pair)?;
            }
        }
        Ok(survey)
    }

    fn add(&mut self, mover: &Mover, pair: &Pair) -> Result<()> {
        let Some(from) = &pair.from else {
            if mover.state.mark_of(&pair.key)?.is_none() {
                self.extra.add(&pair.key);
            }
            return Ok(());
        };
        self.objects += 1;
        self.bytes += from.size;
        // Each object has the same chance to be in the sample.
        if self.samples.len() < SAMPLES {
            self.samples.push((pair.key.clone(), from.size));
        } else {
            let place = fastrand::u64(..self.objects);
            if let Some(sample) = usize::try_from(place).ok().and_then(|place| self.samples.get_mut(place)) {
                *sample = (pair.key.clone(), from.size);
            }
        }
        let capabilities = mover.target.capabilities();
        if from.size > capabilities.max_object {
            self.too_large.add(&pair.key);
        }
        if !capabilities.free_keys && self.is_unkeepable(&pair.key) {
            self.unkeepable.add(&pair.key);
        }
        if let Some(to) = &pair.to {
            let differs = from.size != to.size || both_md5(mover, Flow::Forward, from, to) == Some(false);
            if differs && mover.state.mark_of(&pair.key)?.is_none() {
                self.differing.add(&pair.key);
            }
        }
        Ok(())
    }

    /// A key that is a folder and an object at once, ends with `/`, or has an empty folder name.
    fn is_unkeepable(&mut self, key: &str) -> bool {
        while self.above.last().is_some_and(|above| !key.starts_with(above.as_str())) {
            self.above.pop();
        }
        let below = self.above.iter().any(|above| key.as_bytes().get(above.len()) == Some(&b'/'));
        self.above.push(key.to_owned());
        below || key.ends_with('/') || key.starts_with('/') || key.contains("//")
    }

    fn findings(&self, mover: &Mover, findings: &mut Vec<Finding>) {
        let target = mover.target.address();
        self.differing.tell(
            "target-differs",
            Severity::Blocker,
            &format!("objects are on {target} already with other content"),
            "empty the target, choose another one, or move what is there away",
            findings,
        );
        self.extra.tell(
            "target-extra",
            Severity::Warning,
            &format!("objects are on {target} only; they stay there untouched"),
            "remove them if the target should be an exact copy",
            findings,
        );
        self.unkeepable.tell(
            "key-refused",
            Severity::Blocker,
            &format!("keys cannot be kept by {target}"),
            "rename or remove them, or choose a target with free keys",
            findings,
        );
        self.too_large.tell(
            "too-large",
            Severity::Blocker,
            &format!("objects are larger than {target} takes"),
            "split or remove them, or choose another target",
            findings,
        );
    }
}

/// What reading a few samples told.
#[derive(Debug, Default)]
struct Sampled {
    reads: u32,
    read_bytes: u64,
    read_seconds: f64,
    /// Until the first byte of each.
    answer_seconds: f64,
    /// Of the samples that could be compressed: their size before and after.
    plain_bytes: u64,
    compressed_bytes: u64,
}

impl Sampled {
    /// One sample after the other, so that no more than one is in memory. What cannot be read is left out.
    async fn read(mover: &Mover, samples: &[(String, u64)]) -> Self {
        let mut sampled = Self::default();
        for (key, size) in samples {
            let Some(chunks) = sampled.read_one(mover, key, *size).await else { continue };
            // Some milliseconds of nothing but computing: not on a thread that others wait for, nor in the time of reading.
            let compressed = tokio::task::spawn_blocking(move || compressed(&chunks)).await;
            if let Ok(Ok((plain, compressed))) = compressed {
                sampled.plain_bytes += plain;
                sampled.compressed_bytes += compressed;
            }
        }
        sampled
    }

    async fn read_one(&mut self, mover: &Mover, key: &str, size: u64) -> Option<Vec<Bytes>> {
        let length = SAMPLE_BYTES.min(size);
        let range = (length > 0 && length < size).then_some(0..length);
        let began = Instant::now();
        let (meta, mut body) = mover.source.get(key, range, None).await.ok()??;
        self.answer_seconds += began.elapsed().as_secs_f64();
        let (mut chunks, mut read) = (Vec::new(), 0);
        while let Some(Ok(chunk)) = body.next().await {
            read += chunk.len() as u64;
            chunks.push(chunk);
            if read >= SAMPLE_BYTES.min(meta.size) {
                break;
            }
        }
        self.reads += 1;
        self.read_bytes += read;
        self.read_seconds += began.elapsed().as_secs_f64();
        Some(chunks)
    }

    /// Compressed size over plain size. At most 1: what does not shrink is sent as it is. `None` with nothing read.
    fn compressed_ratio(&self) -> Option<f64> {
        let ratio = || self.compressed_bytes as f64 / self.plain_bytes as f64;
        (self.plain_bytes > 0).then(|| ratio().min(1.0))
    }

    /// From the time that reading took, with reads and writes side by side. `None` when nothing could be read.
    fn copy_seconds(&self, survey: &Survey, concurrency: usize) -> Option<f64> {
        if self.reads == 0 {
            return (survey.objects == 0).then_some(0.0);
        }
        // Two requests an object, so many at once; bytes at the measured rate of one stream times the streams of a large object.
        let lanes = concurrency.max(1) as f64;
        let by_requests = survey.objects as f64 * 2.0 * (self.answer_seconds / f64::from(self.reads)) / lanes;
        let by_bytes = if self.read_bytes > 0 {
            survey.bytes as f64 / (self.read_bytes as f64 / self.read_seconds.max(1e-6)) / lanes.min(8.0)
        } else {
            0.0
        };
        Some(by_requests.max(by_bytes))
    }
}

/// The size of one sample before and after compression.
fn compressed(chunks: &[Bytes]) -> io::Result<(u64, u64)> {
    let mut encoder = zstd::Encoder::new(Counter(0), COMPRESSION_LEVEL)?;
    let mut plain = 0;
    for chunk in chunks {
        encoder.write_all(chunk)?;
        plain += chunk.len() as u64;
    }
    Ok((plain, encoder.finish()?.0))
}

/// Counts what is written and keeps none of it.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(samples: &[Vec<Bytes>]) -> Sampled {
        let mut sampled = Sampled::default();
        for chunks in samples {
            let (plain, compressed) = compressed(chunks).unwrap();
            sampled.plain_bytes += plain;
            sampled.compressed_bytes += compressed;
        }
        sampled
    }

    fn text(lines: usize) -> Bytes {
        let line =
            |n: usize| format!("2026-05-{:02} GET /media/{n} 200 {} bytes\n", n % 28 + 1, n * 37 % 9_973);
        (0..lines).map(line).collect::<String>().into()
    }

    fn noise(bytes: usize) -> Bytes {
        let mut random = fastrand::Rng::with_seed(7);
        (0..bytes).map(|_| random.u8(..)).collect::<Vec<u8>>().into()
    }

    #[test]
    fn text_shrinks_and_noise_does_not() {
        let ratio = |samples: &[Vec<Bytes>]| sampled(samples).compressed_ratio().unwrap();
        let of_text = ratio(&[vec![text(2_000), text(500)], vec![text(3_000)]]);
        assert!(of_text > 0.0 && of_text < 0.5, "{of_text}");
        let of_noise = ratio(&[vec![noise(100_000)]]);
        assert!(of_noise > 0.99 && of_noise <= 1.0, "{of_noise}");
        // By bytes, not by samples.
        let mostly_noise = ratio(&[vec![text(100)], vec![noise(1 << 20)]]);
        assert!(mostly_noise > 0.95 && mostly_noise < 1.0, "{mostly_noise}");
    }

    #[test]
    fn nothing_read_has_no_ratio_and_a_tiny_object_none_above_one() {
        assert_eq!(sampled(&[]).compressed_ratio(), None);
        assert_eq!(sampled(&[vec![], vec![Bytes::new()]]).compressed_ratio(), None);
        assert_eq!(sampled(&[vec![Bytes::from_static(b"x")]]).compressed_ratio(), Some(1.0));
    }
}
