//! Where tracing goes: a file beside the run for engine and guard, stderr for the gateway and commands.

use crate::exit::{CliError, with_path};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use tracing_subscriber::EnvFilter;

fn filter() -> EnvFilter {
    let filter =
        EnvFilter::try_from_env("REHOME_LOG").unwrap_or_else(|_| EnvFilter::new("info,hyper=warn,s3s=off"));
    // It would write down statements, and some of them carry passwords.
    filter.add_directive("tokio_postgres=warn".parse().expect("this directive is well formed"))
}

pub fn to_stderr() {
    // A second call (tests in one process) keeps the first subscriber.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_writer(std::io::stderr)
        .with_target(false)
        .try_init();
}

pub fn to_file(path: &Path) -> Result<(), CliError> {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(with_path(path))?;
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_writer(std::sync::Mutex::new(file))
        .with_ansi(false)
        .try_init();
    Ok(())
}
