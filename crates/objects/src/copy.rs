//! `rehome copy SRC DST`: one store to another, ad hoc, resumable. The same mover as a migration, without a migration:
//! it neither follows nor fences.

use crate::mover::{Deletes, Mover, PassOptions, RetryPolicy, Settings, pass};
use crate::store::Store;
use crate::verify;
use rehome_part::{Error, ErrorKind, Finding, Flow, Progress, Result, Severity, Verification};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio_util::sync::CancellationToken;

/// What an ad hoc copy may do.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// Delete on the target what is not on the source: a mirror.
    pub delete: bool,
    /// Decide everything, do nothing.
    pub dry_run: bool,
    /// Compare both sides afterwards, without asking the copier.
    pub verify: bool,
    pub concurrency: usize,
    pub memory_bytes: u64,
    pub retry: RetryPolicy,
}

impl Default for CopyOptions {
    fn default() -> Self {
        let Settings { concurrency, memory_bytes, retry, .. } = Settings::default();
        Self { delete: false, dry_run: false, verify: false, concurrency, memory_bytes, retry }
    }
}

/// What an ad hoc copy did, or would do when it was dry.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct CopySummary {
    /// Copied now.
    pub objects: u64,
    pub bytes: u64,
    /// Already equal, or finished before an interruption.
    pub kept: u64,
    pub kept_bytes: u64,
    pub deleted: u64,
    /// On the target only, and left there.
    pub extra: u64,
    /// What could not be carried, the first hundred and a count.
    pub losses: Vec<Finding>,
    pub verification: Option<Verification>,
}

/// Copies everything from `source` to `target`. What is remembered for going on after a kill lives in `state_dir`, in a
/// file that belongs to this pair of addresses.
///
/// # Errors
/// The first failure when some keys failed (the others are copied), or what made all of them fail.
pub async fn copy(
    source: Arc<dyn Store>,
    target: Arc<dyn Store>,
    options: CopyOptions,
    state_dir: &Path,
    progress: Arc<dyn Progress>,
    stop: CancellationToken,
) -> Result<CopySummary> {
    if source.address() == target.address() {
        let text = format!("source and target are the same: {}", source.address());
        return Err(Error::permanent(ErrorKind::Unsupported, text));
    }
    let settings = Settings {
        concurrency: options.concurrency.max(1),
        memory_bytes: options.memory_bytes,
        retry: options.retry,
        ..Settings::default()
    };
    let pair = blake3::hash(format!("{}\n{}", source.address(), target.address()).as_bytes()).to_hex();
    let short: String = pair.chars().take(16).collect();
    let mover = Mover::new(source, target, settings, state_dir, &format!("copy-{short}.sqlite"))?;
    let mover = Arc::new(mover);
    mover.source.check().await.map_err(|e| e.on(rehome_part::Side::Source))?;
    if !options.dry_run {
        mover.target.create().await.map_err(|e| e.on(rehome_part::Side::Target))?;
    }
    let deletes = if options.delete { Deletes::All } else { Deletes::Never };
    let pass_options = PassOptions {
        deletes,
        dry_run: options.dry_run,
        markers: false,
        leave_moving: false,
        note_strangers: false,
    };
    let done = pass(&mover, Flow::Forward, pass_options, progress.as_ref(), &stop).await?;
    if !options.dry_run {
        mover.drop_stale_uploads(Flow::Forward).await?;
    }
    let verification = if options.verify && !options.dry_run {
        let kept = if options.delete { verify::Extras::Differ } else { verify::Extras::Ignored };
        Some(verify::full(&mover, Flow::Forward, kept, &verify::Still, progress.as_ref(), &stop).await?)
    } else {
        None
    };
    let summary = CopySummary {
        objects: done.copied,
        bytes: done.copied_bytes,
        kept: done.kept,
        kept_bytes: done.kept_bytes,
        deleted: done.deleted,
        extra: done.extra,
        losses: losses(&mover)?,
        verification,
    };
    mover.state.settle_on_disk()?;
    Ok(summary)
}

/// The first losses told one by one.
const LOSSES_TOLD: usize = 100;

/// What was lost on the way, and how much of what was written no store vouched for.
pub(crate) fn losses(mover: &Mover) -> Result<Vec<Finding>> {
    let mut losses = mover.state.losses(LOSSES_TOLD)?;
    let unproved = mover.unproved.load(Ordering::Relaxed);
    if unproved > 0 {
        losses.push(Finding {
            id: "checksum-not-reported".into(),
            severity: Severity::Info,
            side: None,
            text: format!(
                "for {unproved} objects the side written to reports no checksum; only `verify` proves their content"
            ),
            remedy: Some("run verify".into()),
        });
    }
    Ok(losses)
}
