//! Looking before anything is done: how much there is, how fast it changes, what stands in the way. It writes nothing.

use crate::follow::Feed;
use crate::listing::{Pair, is_out_of_order, is_reserved};
use crate::mover::{Mover, both_md5};
use rehome_part::{Assessment, Error, ErrorKind, Finding, Flow, Result, Severity, Side};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Objects read in part to see how fast reading is.
const SAMPLES: usize = 8;
const SAMPLE_BYTES: u64 = 1 << 20;
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
    assessment.copy_seconds = copy_seconds(mover, &survey).await;
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

/// From the time that reading a few samples took, with reads and writes side by side. `None` with nothing to read.
async fn copy_seconds(mover: &Mover, survey: &Survey) -> Option<f64> {
    let (mut read_bytes, mut read_seconds, mut answer_seconds, mut reads) = (0.0, 0.0, 0.0, 0.0);
    for (key, size) in &survey.samples {
        let length = SAMPLE_BYTES.min(*size);
        let range = (length > 0 && length < *size).then_some(0..length);
        let began = Instant::now();
        let Ok(Some((meta, mut body))) = mover.source.get(key, range, None).await else { continue };
        answer_seconds += began.elapsed().as_secs_f64();
        let mut read = 0;
        while let Some(Ok(chunk)) = futures::StreamExt::next(&mut body).await {
            read += chunk.len() as u64;
            if read >= SAMPLE_BYTES.min(meta.size) {
                break;
            }
        }
        read_bytes += read as f64;
        read_seconds += began.elapsed().as_secs_f64();
        reads += 1.0;
    }
    if reads == 0.0 {
        return (survey.objects == 0).then_some(0.0);
    }
    // Two requests an object, so many at once; bytes at the measured rate of one stream times the streams of a large object.
    let lanes = mover.settings.concurrency.max(1) as f64;
    let by_requests = survey.objects as f64 * 2.0 * (answer_seconds / reads) / lanes;
    let by_bytes = if read_bytes > 0.0 {
        survey.bytes as f64 / (read_bytes / read_seconds.max(1e-6)) / lanes.min(8.0)
    } else {
        0.0
    };
    Some(by_requests.max(by_bytes))
}
