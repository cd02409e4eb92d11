//! `rehome copy`: objects from any store to any other, ad hoc and resumable.

use super::{Context, resolve};
use crate::exit::{CliError, Exit};
use crate::printer::{count, size, span};
use crate::{paths, view};
use clap::Args;
use rehome_objects::CopyOptions;
use rehome_part::Side;
use rehome_spec::{Secret, Store};
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// Copy objects between any two stores, resumable
///
/// Stores are s3://bucket/prefix, oss://, cos://, obs://, gcs://, azblob://container/prefix and file:///folder (or a plain
/// path). A copy that was ended goes on where it was when it is started again. Objects that are only on the target stay
/// there, unless `--delete` is given.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  rehome copy s3://shop-media file:///srv/media --source-region eu-west-1\n  \
    rehome copy /usr/share/doc s3://docs --target-endpoint http://127.0.0.1:9000"
)]
pub struct CopyArgs {
    /// Where from
    pub source: String,
    /// Where to
    pub target: String,
    #[command(flatten)]
    pub source_options: SourceOptions,
    #[command(flatten)]
    pub target_options: TargetOptions,
    /// Copies under way at once
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub concurrency: u32,
    /// Remove from the target what the source does not have
    #[arg(long)]
    pub delete: bool,
    /// Decide everything, do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Compare both sides afterwards, exit 10 on a difference
    #[arg(long)]
    pub verify: bool,
}

/// How the source is reached; keys default to the environment (AWS_ACCESS_KEY_ID, …).
#[derive(Debug, Args, Default)]
pub struct SourceOptions {
    /// The source's address, when it does not follow from its URL
    #[arg(long, value_name = "URL")]
    pub source_endpoint: Option<String>,
    #[arg(long, value_name = "REGION")]
    pub source_region: Option<String>,
    /// Reference to the source's access key: env:NAME, file:PATH or cmd:PROGRAM
    #[arg(long, value_name = "REF")]
    pub source_access_key: Option<String>,
    /// Reference to the source's secret key
    #[arg(long, value_name = "REF")]
    pub source_secret_key: Option<String>,
}

/// How the target is reached.
#[derive(Debug, Args, Default)]
pub struct TargetOptions {
    /// The target's address, when it does not follow from its URL
    #[arg(long, value_name = "URL")]
    pub target_endpoint: Option<String>,
    #[arg(long, value_name = "REGION")]
    pub target_region: Option<String>,
    /// Reference to the target's access key: env:NAME, file:PATH or cmd:PROGRAM
    #[arg(long, value_name = "REF")]
    pub target_access_key: Option<String>,
    /// Reference to the target's secret key
    #[arg(long, value_name = "REF")]
    pub target_secret_key: Option<String>,
}

pub async fn run(context: &Context<'_>, args: &CopyArgs) -> Result<Exit, CliError> {
    let (source_options, target_options) = (&args.source_options, &args.target_options);
    let source = store(
        &args.source,
        [
            source_options.source_endpoint.as_ref(),
            source_options.source_region.as_ref(),
            source_options.source_access_key.as_ref(),
            source_options.source_secret_key.as_ref(),
        ],
    )?;
    let target = store(
        &args.target,
        [
            target_options.target_endpoint.as_ref(),
            target_options.target_region.as_ref(),
            target_options.target_access_key.as_ref(),
            target_options.target_secret_key.as_ref(),
        ],
    )?;
    // Marks of a pair of places: the same command finds them again after a kill.
    let marks = context.home.join("copies");
    paths::private_folder(&marks)?;
    let source = rehome_objects::store::open(&source, Side::Source, &resolve)?;
    let target = rehome_objects::store::open(&target, Side::Target, &resolve)?;
    let options = CopyOptions {
        concurrency: args.concurrency as usize,
        delete: args.delete,
        dry_run: args.dry_run,
        verify: args.verify,
        ..CopyOptions::default()
    };
    let progress = view::progress::sink(context.printer);
    let stop = CancellationToken::new();
    let begun = Instant::now();
    let copied =
        rehome_objects::copy(source, target, options, &marks, Arc::clone(&progress) as _, stop.clone());
    let outcome = tokio::select! {
        outcome = copied => outcome,
        _ = tokio::signal::ctrl_c() => {
            stop.cancel();
            progress.finish();
            context.printer.talk("stopped; the same command goes on where this one was");
            return Ok(Exit::Failed);
        }
    };
    progress.finish();
    let outcome = outcome?;
    let seconds = begun.elapsed().as_secs_f64();
    if context.global.json {
        context.printer.json(&serde_json::json!({
            "type": "summary", "ui": "1.0", "objects": outcome.objects, "bytes": outcome.bytes, "kept": outcome.kept,
            "deleted": outcome.deleted, "seconds": seconds, "losses": outcome.losses,
            "extra": outcome.extra, "verification": outcome.verification, "dry_run": args.dry_run,
        }));
    } else {
        for loss in &outcome.losses {
            context.printer.line(&super::doctor::line(loss));
        }
        for difference in outcome.verification.iter().flat_map(|verification| &verification.differences) {
            context.printer.line(&super::doctor::line(difference));
        }
        let would = if args.dry_run { "would copy" } else { "copied" };
        let compared = outcome.verification.as_ref().map_or_else(String::new, |verification| {
            format!(
                ", {} compared, {} differ",
                count(verification.compared),
                count(verification.differences_total)
            )
        });
        context.printer.line(&format!(
            "{would} {} objects, {} in {}; kept {}, deleted {}, {} not carried whole{compared}",
            count(outcome.objects),
            size(outcome.bytes),
            span(seconds),
            count(outcome.kept),
            count(outcome.deleted),
            count(view::lost(&outcome.losses)),
        ));
    }
    let differs = outcome.verification.as_ref().is_some_and(|verification| !verification.is_equal());
    Ok(if differs || view::lost(&outcome.losses) > 0 { Exit::Differences } else { Exit::Done })
}

/// A store as the migration file would describe it; options are endpoint, region, access key, secret key.
fn store(
    url: &str,
    [endpoint, region, access_key, secret_key]: [Option<&String>; 4],
) -> Result<Store, CliError> {
    let url = if url.contains("://") {
        url.to_owned()
    } else {
        let path = std::path::absolute(url).map_err(crate::exit::with_path(std::path::Path::new(url)))?;
        format!("file://{}", path.display())
    };
    let from_environment = |names: &[&str]| {
        names.iter().find(|name| std::env::var_os(name).is_some()).map(|name| Secret(format!("env:{name}")))
    };
    let secret = |option: Option<&String>, names: &[&str]| {
        option.map(|text| Secret(text.clone())).or_else(|| from_environment(names))
    };
    let needs_keys = !url.starts_with("file:");
    let access = secret(access_key, &["AWS_ACCESS_KEY_ID"]).filter(|_| needs_keys);
    let hidden = secret(secret_key, &["AWS_SECRET_ACCESS_KEY"]).filter(|_| needs_keys);
    let region = region.cloned().or_else(|| std::env::var("AWS_REGION").ok()).filter(|_| needs_keys);
    Ok(Store {
        url,
        endpoint: endpoint.cloned(),
        region,
        access_key: access,
        secret_key: hidden,
        path_style: None,
        principal: None,
    })
}
